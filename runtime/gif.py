"""Frames to an animated GIF, each with the 256 colours that suit it best."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from sana_rt.files import writing
from sana_rt.runtime import comments
from sana_rt.runtime.comments import Tags
from sana_rt.runtime.growing_file import GrowingFile

Frames = NDArray[np.uint8]

#: One palette a frame, so that a frame can be written without the next ones.
_PALETTE: Final = "stats_mode=single:reserve_transparent=0"
_USE: Final = "new=1"
_FLUSHED: Final = {"flush_packets": "1"}


@contextlib.contextmanager
def gif(
    path: Path, *, height: int, width: int, fps: int, tags: Tags, live: bool = False
) -> Iterator[Callable[[Frames], None]]:
    """Write a GIF: a function that takes u8 [n, height, width, 3].

    The file has its name only when the block ends without error; a ``live`` one from the first
    frames on, and it stays if there is an error. GIF counts time in hundredths of a second.

    Raises:
        DiskFullError, StorageError: the file could not be written.
    """
    time_base = Fraction(1, fps)
    with contextlib.ExitStack() as stack:
        write_piece: Callable[[bytes], object]
        if live:
            write_piece = stack.enter_context(GrowingFile(path)).append
        else:
            write_piece = stack.enter_context(writing(path)).write
        pieces = _Pieces(write_piece, tags)
        container = stack.enter_context(av.open(pieces, "w", format="gif", options=_FLUSHED))
        stream = container.add_stream("gif", rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        palettes = _palettes(height, width, time_base)
        count = 0

        def write(frames: Frames) -> None:
            nonlocal count
            for picture in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = count, time_base
                count += 1
                palettes.push(frame)
                container.mux(stream.encode(palettes.vpull()))

        yield write
        container.mux(stream.encode(None))


class _Pieces:
    """Where the muxer writes; the first piece holds the header and gets the comment."""

    def __init__(self, write: Callable[[bytes], object], tags: Tags) -> None:
        self._write, self._tags = write, tags
        self._begun = False

    def write(self, data: bytes) -> int:
        piece = bytes(data)
        self._write(piece if self._begun else comments.gif(piece, self._tags))
        self._begun = True
        return len(data)


def _palettes(height: int, width: int, time_base: Fraction) -> Graph:
    """FFmpeg's filters that choose the colours of a frame and draw it in them."""
    graph = Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgb24"), time_base=time_base
    )
    split, sink = graph.add("split"), graph.add("buffersink")
    palette, use = graph.add("palettegen", _PALETTE), graph.add("paletteuse", _USE)
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph
