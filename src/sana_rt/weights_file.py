"""A graph's weights in a file of their own, each tensor at the beginning of a page.

So they can be memory-mapped, and be written one at a time, in the memory of the largest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, NamedTuple

from sana_rt.files import storage_errors, writing

SUFFIX: Final = ".weights"
ALIGNMENT: Final = 4096  # bytes of a page


class Extent(NamedTuple):
    """Where a tensor lies, in the fields of ONNX's external data."""

    location: str
    offset: int
    length: int


class WeightsWriter:
    """Appends tensors to the file that :func:`beside` opened.

    ``files`` are those that are there in the end: that one, or none if nothing was appended.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.files: tuple[Path, ...] = ()
        self._path, self._file = path, file

    def append(self, data: bytes | memoryview) -> Extent:
        """Write the bytes of a tensor, at least one."""
        self.files = (self._path,)
        offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(offset)
        return Extent(self._path.name, offset, self._file.write(data))


@contextmanager
def beside(graph: Path) -> Iterator[WeightsWriter]:
    """Write the weights of the ``graph`` beside it; whole when the block ends, or not there."""
    path = graph.with_suffix(SUFFIX)
    with writing(path) as file:
        writer = WeightsWriter(path, file)
        yield writer
    if not writer.files:
        with storage_errors(path):
            path.unlink()
