"""Files that are either complete under their name or not there: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sana_rt.errors import DiskFullError, LockedError, StorageError

_READ_BYTES = 1 << 20
PARTIAL_SUFFIX = ".partial"
_SYNCS_FOLDERS = hasattr(os, "O_DIRECTORY")  # Windows opens none, and syncs what it can write


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
    with storage_errors(path):
        partial, raw = create_partial(path)
        try:
            with io.BufferedWriter(raw) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def create_partial(path: Path) -> tuple[Path, io.FileIO]:
    """A new file beside ``path``, of a name that no other process writes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    return partial, partial.open("xb", buffering=0)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with writing(path) as file:
        file.write(data)


def clear_partials(path: Path) -> None:
    """Remove what killed writers of ``path`` left; nobody else may be writing it."""
    with storage_errors(path):
        for partial in path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL_SUFFIX}"):
            partial.unlink(missing_ok=True)


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
    import filelock  # noqa: PLC0415 - half of this module's import time, and readers need none

    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            held = filelock.FileLock(directory / ".lock").acquire(blocking=False)
        except filelock.Timeout as error:
            raise LockedError(
                f"Another process is writing {directory}.",
                remedy="wait for it to end, then run the command again.",
            ) from error
    with held:
        yield


def _sync(path: Path) -> None:
    if path.is_dir() and not _SYNCS_FOLDERS:
        return
    descriptor = os.open(path, os.O_RDONLY if _SYNCS_FOLDERS else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
