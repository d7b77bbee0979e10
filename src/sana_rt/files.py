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
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from sana_rt.errors import DiskFullError, LockedError, StorageError

try:
    import fcntl

    _HOLDS = True
except ImportError:  # Windows
    _HOLDS = False

_READ_BYTES = 1 << 20
PARTIAL_SUFFIX = ".partial"
_SYNCS_FOLDERS = hasattr(os, "O_DIRECTORY")  # Windows opens none, and syncs what it can write


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn operating system errors about ``path`` into :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def storage_error(error: OSError, path: Path) -> StorageError:
    """What an operating system error about ``path`` is told as."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"No room left while writing {path}: {error.strerror}.",
            expected=f"more than {free_bytes(path):,} bytes free on its file system.",
            remedy="free some space or choose another output, then run the command again.",
        )
    return StorageError(
        f"{error.strerror or error}: {path}.", remedy="check the path and its permissions."
    )


def read_at_most(file: IO[bytes], limit: int) -> bytes:
    """The rest of ``file``, cut at ``limit`` bytes, in the memory of what is there."""
    blocks = []
    while block := file.read(min(limit, _READ_BYTES)):
        blocks.append(block)
        limit -= len(block)
    return b"".join(blocks)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the name ``path`` only when the block ends without error."""
    with storage_errors(path):
        partial, raw = create_partial(path)
        try:
            with io.BufferedWriter(raw) as file:
                yield file
                file.flush()
                os.fsync(raw.fileno())
                take_name(partial, raw, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def create_partial(path: Path) -> tuple[Path, io.FileIO]:
    """A new file beside ``path``, of a name that no other process writes to.

    It is locked while it is open. So those that killed writers left are known, and removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    while True:
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
        file = partial.open("xb", buffering=0)
        if _hold(file):
            return partial, file
        file.close()


def take_name(partial: Path, file: io.FileIO, path: Path) -> None:
    """Rename a file of :func:`create_partial` while it is held; it may be closed afterwards."""
    if not _HOLDS:
        file.close()  # Windows renames no file that is open
    partial.replace(path)


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


def open_regular(path: Path) -> BinaryIO:
    """A file to read; :class:`StorageError` for a device, a pipe or a folder.

    A device may never end, and a pipe cannot be read again from its beginning.
    """
    with storage_errors(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise StorageError(
                f"{path} is not a file.",
                expected="a regular file: no folder, device or pipe.",
                remedy="save what is to be read to a file.",
            )
        return path.open("rb")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a regular file."""
    digest = hashlib.sha256()
    with storage_errors(path), open_regular(path) as file:
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


def _remove_abandoned(path: Path) -> None:
    """Remove the partial files of ``path`` that no process holds."""
    if not _HOLDS:
        return
    for partial in path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(OSError), partial.open("rb") as file:  # held, or gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def _hold(file: io.FileIO) -> bool:
    """Lock a new file; False if another process took it for abandoned in between."""
    if not _HOLDS:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where nothing is taken for abandoned either
        return True
    return os.fstat(file.fileno()).st_nlink > 0


def _sync(path: Path) -> None:
    if path.is_dir() and not _SYNCS_FOLDERS:
        return
    descriptor = os.open(path, os.O_RDONLY if _SYNCS_FOLDERS else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
