"""Files appear whole under their name or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from sana_rt import array_files, files
from sana_rt.errors import DiskFullError, LockedError, StorageError

OLD, NEW = b"old", b"new"
HOLDER = """
import sys
from pathlib import Path
from sana_rt.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a/b", NEW)
    assert (tmp_path / "a/b").read_bytes() == NEW
    assert _names(tmp_path / "a") == ["b"]


def test_the_name_is_taken_only_at_the_end(tmp_path: Path) -> None:
    with files.writing(tmp_path / "f") as file:
        file.write(NEW)
        (name,) = _names(tmp_path)
        assert name.startswith("f.")
        assert name.endswith(files.PARTIAL_SUFFIX)
    assert _names(tmp_path) == ["f"]


def test_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    """Each writes a file of its own; the name has what the last to end wrote, whole."""
    path = tmp_path / "f"
    with files.writing(path) as second:
        with files.writing(path) as first:
            first.write(OLD)
            second.write(NEW)
        assert path.read_bytes() == OLD
    assert path.read_bytes() == NEW
    assert _names(tmp_path) == ["f"]


def test_what_killed_writers_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "f", tmp_path / f"g.1{files.PARTIAL_SUFFIX}"
    left = tmp_path / f"f.0{files.PARTIAL_SUFFIX}"
    for each in (left, other):
        each.write_bytes(b"half")
    partial, held = files.create_partial(path)
    assert _names(tmp_path) == [partial.name, other.name]
    files.write_bytes(path, NEW)
    assert _names(tmp_path) == ["f", partial.name, other.name]
    held.close()  # as the kernel does for a process that dies
    files.write_bytes(path, NEW)
    assert _names(tmp_path) == ["f", other.name]


def test_a_new_file_that_is_taken_for_abandoned_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may come between creating and locking it."""
    flock, came = fcntl.flock, list[str]()

    def flock_late(file: Any, how: int) -> None:
        if not came:
            came.extend(_names(tmp_path))
            files.write_bytes(tmp_path / "f", OLD)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    files.write_bytes(tmp_path / "f", NEW)
    assert (tmp_path / "f").read_bytes() == NEW
    assert _names(tmp_path) == ["f"]
    assert len(came) == 1


def test_a_limit_costs_no_memory(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(NEW)
    with (tmp_path / "f").open("rb") as file:
        tracemalloc.start()
        assert files.read_at_most(file, 1 << 30) == NEW
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        file.seek(0)
        assert files.read_at_most(file, 2) == NEW[:2]
    assert peak < 4 << 20


def test_permissions_are_those_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "f", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    path = tmp_path / "f"
    path.write_bytes(OLD)

    def interrupted() -> None:
        with files.writing(path) as file:
            file.write(NEW)
            raise interruption

    with pytest.raises(interruption):
        interrupted()
    assert path.read_bytes() == OLD
    assert _names(tmp_path) == ["f"]


def test_content_is_on_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        events.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def record_replace(self: Path, target: Path) -> Path:
        events.append(f"rename {self.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    files.write_bytes(tmp_path / "f", NEW)
    partial = events[0].removeprefix("fsync ")
    assert partial.endswith(files.PARTIAL_SUFFIX)
    assert events == [f"fsync {partial}", f"rename {partial}", f"fsync {tmp_path.name}"]


def test_publish_moves_a_folder_after_flushing_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, "_sync", lambda path: synced.append(path.name))
    partial = tmp_path / "d.partial"
    files.write_bytes(partial / "a/x", NEW)
    synced.clear()
    files.publish(partial, tmp_path / "d")
    assert (tmp_path / "d/a/x").read_bytes() == NEW
    assert synced == ["a", "x", tmp_path.name]


def test_publish_moves_a_file(tmp_path: Path) -> None:
    (tmp_path / "f.partial").write_bytes(NEW)
    files.publish(tmp_path / "f.partial", tmp_path / "f")
    assert _names(tmp_path) == ["f"]


def test_a_full_disk_is_said_with_numbers(tmp_path: Path) -> None:
    """``/dev/full`` answers every write with ENOSPC."""
    with (
        pytest.raises(DiskFullError, match="bytes free") as caught,
        files.storage_errors(tmp_path / "f"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(NEW)
    assert str(tmp_path / "f") in caught.value.happened


def test_a_disk_that_fills_up_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(OLD)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        files.write_bytes(path, NEW)
    assert path.read_bytes() == OLD
    assert _names(tmp_path) == ["f"]


def test_other_system_errors_name_the_path(tmp_path: Path) -> None:
    blocked = tmp_path / "file/below"
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(StorageError, match=str(blocked)):
        files.write_bytes(blocked, NEW)
    with pytest.raises(StorageError, match="No such file"):
        files.sha256(tmp_path / "absent")


@pytest.mark.parametrize("length", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_is_hashlibs(tmp_path: Path, length: int) -> None:
    data = bytes(index % 251 for index in range(length))
    (tmp_path / "f").write_bytes(data)
    assert files.sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_free_bytes_of_a_place_that_is_not_there_yet(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    total = status.f_frsize * status.f_blocks
    assert 0 < files.free_bytes(tmp_path / "a/b/c") <= total


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    command: list[Any] = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=str(tmp_path)), files.lock(tmp_path):
            pytest.fail("two writers at once")
        holder.kill()  # the kernel drops the lock of a process that dies
    with (
        files.lock(tmp_path),
        pytest.raises(LockedError),
        files.lock(tmp_path),  # not even for the process that holds it
    ):
        pytest.fail("two writers at once")
    with files.lock(tmp_path):
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_may_have_no_end_is_not_read(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    for read in (files.open_regular, files.sha256, array_files.is_archive, array_files.read_npy):
        with pytest.raises(StorageError, match="is not a file"):
            read(path)
    with pytest.raises(StorageError, match="is not a file"):
        array_files.ArrayArchive(path)
