"""Where a clip goes: the options of both commands that make one, its name, and writing it."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sana_rt import files, machine
from sana_rt.cli import command, paths

if TYPE_CHECKING:
    from sana_rt.cli.playing import Reporter
    from sana_rt.runtime.autoencoder import Frames
    from sana_rt.runtime.clip_record import ClipRecord
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.session import Session

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_SLUG_CHARS: Final = 40

_OPTIONS: Final = (
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        help="File to write: clip.mp4, clip.gif, or a pattern such as frames/%04d.png for a PNG "
        "per frame.  [default: an mp4 called by PROMPT and the seed]",
    ),
    click.option(
        "--contact-sheet",
        type=_FILE,
        help="Also write nine frames of the video as one picture, .png.",
    ),
    click.option(
        "--no-metadata",
        is_flag=True,
        help="Leave the prompt, the options and the versions out of the files; else `sana-rt "
        "inspect FILE` shows them.",
    ),
    command.overwrite_option,
    command.json_option,
)


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that :class:`ClipOutput` is made of, and ``--json``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class ClipOutput:
    """The files that a clip goes to; ``path`` is None where no video is wanted."""

    path: Path | None
    contact_sheet: Path | None
    metadata: bool
    overwrite: bool

    @property
    def named(self) -> dict[str, Path | None]:
        """The files by their options."""
        return {"--output": self.path, "--contact-sheet": self.contact_sheet}

    def check(self, inputs: Mapping[str, Path | None]) -> None:
        """Raise :class:`UsageError` for names of other kinds, and what :func:`paths.check` does."""
        from sana_rt.runtime import clip_file

        if self.path is not None:
            clip_file.check_name(self.path)
        paths.check_suffix("--contact-sheet", self.contact_sheet, ".png")
        paths.check(self.named, inputs, overwrite=self.overwrite)
        if self.path is not None and not self.overwrite and (there := clip_file.files(self.path)):
            raise paths.exists("--output", there[0])

    def called(self, request: Request) -> ClipOutput:
        """With a name of its own that no file has, made of the prompt and the seed."""
        stem = f"{slug(request.prompt)}-{request.seed}"
        path = Path(free_name(stem, lambda name: Path(name).exists()))
        paths.check({"--output": path}, {})
        return replace(self, path=path)

    @contextlib.contextmanager
    def writing(
        self,
        request: Request,
        record: ClipRecord,
        reporter: Reporter,
        *,
        frames: int,
        live: bool = False,
    ) -> Iterator[Callable[[Frames], None]]:
        """Write the files: a function that takes frames, of which there will be so many."""
        from sana_rt.runtime.clip_file import clip_file
        from sana_rt.runtime.images import ContactSheet

        tags = record.tags if self.metadata else {}
        sheet = ContactSheet(frames)
        size = {"height": request.height, "width": request.width, "fps": request.fps}
        clip = (
            contextlib.nullcontext(lambda _: None)
            if self.path is None
            else clip_file(self.path, **size, tags=tags, live=live)
        )
        with clip as write:

            def write_both(made: Frames) -> None:
                reporter.lap("decode")
                write(made)
                sheet.add(made)
                reporter.lap("write")

            yield write_both
        if self.contact_sheet is not None:
            sheet.write(self.contact_sheet, tags)
        reporter.lap("write")

    def facts(self, request: Request, session: Session, reporter: Reporter) -> dict[str, Any]:
        """What was made, for ``--json``."""
        import msgspec

        from sana_rt.runtime import clip_file

        made = [] if self.path is None else clip_file.files(self.path)
        return {
            "output": None if self.path is None else str(self.path),
            "contact_sheet": None if self.contact_sheet is None else str(self.contact_sheet),
            "bytes": sum(each.stat().st_size for each in made),
            "model": session.model.name,
            "variant": session.graphs.variant,
            "backend": session.backend,
            "request": msgspec.to_builtins(request),
            "seconds": reporter.seconds(),
            "peak_bytes": machine.peak_resident_bytes(),
        }


def hashes(inputs: Mapping[str, Path | None]) -> dict[str, str]:
    """The SHA-256 of the files that a clip is made of, by their options."""
    return {name: files.sha256(path) for name, path in inputs.items() if path is not None}


def slug(prompt: str) -> str:
    """The first words of a prompt, as a part of a file's name."""
    words = ""
    for word in re.findall(r"\w+", prompt.lower()):
        if len(words) + len(word) > _SLUG_CHARS:
            break
        words += f"{word}-"
    return words.removesuffix("-") or "clip"


def free_name(stem: str, is_taken: Callable[[str], bool]) -> str:
    """The first of ``stem.mp4``, ``stem-2.mp4``, ``stem-3.mp4``, ... that is not taken."""
    later = (f"{stem}-{number}.mp4" for number in itertools.count(2))
    names = itertools.chain([f"{stem}.mp4"], later)
    return next(name for name in names if not is_taken(name))
