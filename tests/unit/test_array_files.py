"""Array files: what numpy writes is read, everything else is one error."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sana_rt.array_files import ArrayArchive, DamagedArrayError, StoredArray, read_npy
from sana_rt.errors import StorageError

ARRAYS = (
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.array(7, np.int64),
    np.zeros((0, 3), np.uint8),
    np.array([True, False]),
    np.arange(5, dtype=np.float64),
)


def _array(stored: StoredArray) -> np.ndarray:
    return np.frombuffer(stored.data, stored.dtype).reshape(stored.shape)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_what_numpy_writes_is_read(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    read = _array(read_npy(tmp_path / "a.npy"))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", one=array, two=array)
        with ArrayArchive(tmp_path / "a.npz") as archive:
            assert set(archive) == {"one", "two"}
            np.testing.assert_array_equal(_array(archive["two"]), array)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


PLAIN = _npy(ARRAYS[0])
WRONG = {
    "nothing": b"",
    "text": b"not an array",
    "cut": PLAIN[:-1],
    "longer": PLAIN + b"x",
    "objects": _npy(np.array([{}], dtype=object)),
    "fortran order": _npy(np.asfortranarray(ARRAYS[0])),
    "text values": _npy(np.array(["a"])),
    "complex": _npy(np.zeros(2, np.complex64)),
    "a shape of 16 TiB": PLAIN.replace(b"(2, 3, 4)", b"(4398046511104,)"),
    "a shape beyond 64 bits": PLAIN.replace(b"(2, 3, 4)", b"(9999999999999999999, 9)"),
    "source code": PLAIN.replace(b"'descr'", b"exit(1)"),
    "a header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    "version 9": PLAIN.replace(b"NUMPY\x01", b"NUMPY\x09"),
}


@pytest.mark.parametrize("name", WRONG)
def test_anything_else_is_one_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(WRONG[name])
    with pytest.raises(DamagedArrayError):
        read_npy(path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", WRONG[name])
    with ArrayArchive(tmp_path / "a.npz") as opened, pytest.raises(DamagedArrayError):
        opened["a"]


def test_every_byte_of_an_archive_counts(tmp_path: Path) -> None:
    """A flipped bit is found, or it is in a field that says nothing of the values."""
    path = tmp_path / "a.npz"
    np.savez(path, one=ARRAYS[0])
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            with ArrayArchive(path) as archive:
                for name in archive:
                    np.testing.assert_array_equal(_array(archive[name]), ARRAYS[0])
        except DamagedArrayError:
            continue


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(1 << 20, np.uint8))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1 << 31).to_bytes(4, "little")  # the unpacked size in the list
    path.write_bytes(data)
    with pytest.raises(DamagedArrayError, match="cannot have"):
        ArrayArchive(path)


def test_a_file_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    for read in (read_npy, ArrayArchive):
        with pytest.raises(StorageError):
            read(tmp_path / "none")
