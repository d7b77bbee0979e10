"""Files that are either complete under their name or not there: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sana_rt.errors import DiskFullError, LockedError, StorageError

_READ_BYTES = 1 << 20
PARTIAL_SUFFIX = ".partial"


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn operating system errors about ``path`` into :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"No room left while writing {path}: {error.strerror}.",
                expected=f"more than {free_bytes(path):,} bytes free on its file system.",
                remedy="free some space or choose another output, then run the command again.",
            ) from error
        raise StorageError(
            f"{error.strerror or error}: {path}.", remedy="check the path and its permissions."
        ) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the name ``path`` only when the block ends without error."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with writing(path) as file:
        file.write(data)


def publish(partial: Path, path: Path) -> None:
    """Flush a finished temporary file or directory to disk and give it its final name."""
    with storage_errors(path):
        for file in sorted(partial.rglob("*")) if partial.is_dir() else [partial]:
            _sync(file)
        partial.replace(path)
        _sync(path.parent)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with storage_errors(path), path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes free on the file system that holds ``path`` or would hold it."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the writer's lock of a bundle; a second writer is refused at once."""
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / ".lock").open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(
                f"Another process is writing {directory}.",
                remedy="wait for it to end, then run the command again.",
            ) from error
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
