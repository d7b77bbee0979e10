"""A file that can be read while it grows."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from sana_rt import files
from sana_rt.errors import StorageError
from sana_rt.files import storage_errors


class GrowingFile:
    """A file that only ever holds whole pieces, under its name from the first one on.

    Raises:
        DiskFullError, StorageError: it could not be written, or at the end (of a block without
            error) another file is under the name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._failed = False

    def __enter__(self) -> Self:
        """Create it, under a temporary name."""
        with storage_errors(self._path):
            self._partial, self._file = files.create_partial(self._path)
        return self

    def append(self, piece: bytes) -> None:
        """Add a piece, or take back what was written of it; after a failure do nothing."""
        if self._failed or not piece:
            return
        self._failed = True
        with storage_errors(self._path):
            try:
                rest = memoryview(piece)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    self._file.truncate(self._size)
                raise
            if not self._size:
                self._publish()
        self._size += len(piece)
        self._failed = False

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        """Bring it to the disk, or remove it if it holds nothing."""
        try:
            if self._size and not self._failed:
                with storage_errors(self._path):
                    os.fsync(self._file.fileno())
                    if kind is None:
                        self._check_own(self._path.stat())
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def _publish(self) -> None:
        """Take the name; then open the file under it, if it still is this one."""
        partial = os.fstat(self._file.fileno())
        files.take_name(self._partial, self._file, self._path)
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._check_own(partial)

    def _check_own(self, other: os.stat_result) -> None:
        if not os.path.samestat(os.fstat(self._file.fileno()), other):
            raise StorageError(
                f"Another process has written {self._path} in the meantime.",
                remedy="give each process an output of its own, then run the command again.",
            )
