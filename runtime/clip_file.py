"""The file that a clip goes to, or the files: an mp4, a GIF, or PNGs with numbers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sana_rt.errors import UsageError
from sana_rt.runtime.comments import Tags

Frames = NDArray[np.uint8]

NAMES: Final = "clip.mp4, clip.gif, or frames/%04d.png for a file per frame"
_NUMBER: Final = re.compile(r"%0?(\d*)d")


def check_name(path: Path) -> None:
    """Raise :class:`UsageError` unless the name says which of the formats is meant."""
    numbered = len(_NUMBER.findall(path.name)) == 1 and path.name.count("%") == 1
    if path.suffix not in {".mp4", ".gif"} and not (path.suffix == ".png" and numbered):
        raise UsageError(f"{path} does not end in .mp4, .gif or %d.png.", expected=f"{NAMES}.")


def files(path: Path) -> list[Path]:
    """The files there are under the name: of a pattern, all that fit it."""
    if path.suffix != ".png":
        return [path] if path.exists() else []
    before, _, after = _NUMBER.sub("\0", path.name).partition("\0")
    fits = re.compile(re.escape(before) + r"\d+" + re.escape(after))
    folder = path.parent.iterdir() if path.parent.is_dir() else ()
    return sorted(each for each in folder if fits.fullmatch(each.name))


@contextlib.contextmanager
def clip_file(
    path: Path, *, height: int, width: int, fps: int, tags: Tags, live: bool = False
) -> Iterator[Callable[[Frames], None]]:
    """Write a clip: a function that takes u8 [n, height, width, 3].

    It is there when the block ends without error, and not before. A ``live`` one can be watched
    meanwhile and stays if there is an error. ``tags`` go into the file.

    Raises:
        RequestError: an mp4 of odd height or width.
        DiskFullError, StorageError: a file could not be written.
    """
    if path.suffix == ".png":
        with _numbered(path, tags, keep=live) as write:
            yield write
        return
    size = {"height": height, "width": width, "fps": fps}
    if path.suffix == ".gif":
        from sana_rt.runtime.gif import gif  # noqa: PLC0415 (loads FFmpeg)

        with gif(path, **size, tags=tags, live=live) as write:
            yield write
        return
    from sana_rt.runtime import video  # noqa: PLC0415 (loads FFmpeg)

    with (video.live_video if live else video.video)(path, **size, tags=tags) as write:
        yield write


@contextlib.contextmanager
def _numbered(path: Path, tags: Tags, *, keep: bool) -> Iterator[Callable[[Frames], None]]:
    """Write PNGs, counted from 1 as FFmpeg does; those of before that are left over go."""
    from sana_rt.runtime.images import write_png  # noqa: PLC0415 (loads FFmpeg)

    before, written = files(path), list[Path]()

    def write(frames: Frames) -> None:
        for picture in frames:
            written.append(path.with_name(path.name % (len(written) + 1)))
            write_png(written[-1], picture, tags)

    try:
        yield write
    except BaseException:
        if not keep:
            _remove(written)
        raise
    _remove(each for each in before if each not in written)


def _remove(paths: Iterator[Path] | list[Path]) -> None:
    for each in paths:
        each.unlink(missing_ok=True)
