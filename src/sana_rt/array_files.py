"""numpy's files of arrays (``.npy``, ``.npz``), read with nothing taken on trust.

numpy allocates what a header asks for before it looks at the file, evaluates headers as Python
source, and lets archives raise a dozen kinds of errors. Here a header has the one form that numpy
writes, sizes are compared with the bytes that are there, and every damage is one error. Values
stay bytes, so that numpy is not needed to judge a file.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final, NamedTuple

from sana_rt.files import open_regular

MAX_RANK: Final = 8
MAX_MEMBERS: Final = 65_536

_MAGIC: Final = b"\x93NUMPY"
_LENGTHS: Final = {1: "<H", 2: "<I", 3: "<I"}  # of the header, by major version
_MAX_HEADER: Final = 4096
_HEADER: Final = re.compile(
    r"\{'descr': '(?P<dtype>[<|][biuf]\d{1,2})', 'fortran_order': False, "
    r"'shape': \((?P<shape>(?:\d{1,19}, ?)*(?:\d{1,19})?)\), \} *\n"
)
_COMPRESSIONS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 1  # bit of a member's flags
_DAMAGE: Final = (
    EOFError,
    IndexError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class DamagedArrayError(ValueError):
    """Not an array file, or one that is not whole; callers name the file in their own error."""


class StoredArray(NamedTuple):
    """An array as it is stored: numpy's name of the type, the shape, and the values' bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive; :class:`StorageError` if it cannot be read."""
    with open_regular(path) as file:
        return zipfile.is_zipfile(file)


def read_npy(path: Path) -> StoredArray:
    """The array of a ``.npy`` file.

    Raises:
        StorageError: the file cannot be read.
        DamagedArrayError: it is not an array of numbers in C order, or not whole.
    """
    with open_regular(path) as file:
        try:
            return _read(file, path.stat().st_size)
        except _DAMAGE as error:
            raise DamagedArrayError(str(error)) from error


class ArrayArchive(Mapping[str, StoredArray]):
    """The arrays of a ``.npz`` file, each read when it is asked for.

    Opening and reading raise :class:`DamagedArrayError`, and :class:`StorageError` where the file
    cannot be read at all. To be closed, or used in a ``with`` block.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_regular(path)
        try:
            self._archive = zipfile.ZipFile(self._file)
            self._members = dict(_members(self._archive, path.stat().st_size))
        except _DAMAGE as error:
            self._file.close()
            raise DamagedArrayError(str(error)) from error

    def __enter__(self) -> ArrayArchive:
        """The archive itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def __getitem__(self, name: str) -> StoredArray:
        """Read an array."""
        member = self._members[name]
        try:
            with self._archive.open(member) as file:
                stored = _read(file, member.file_size)
                if file.read(1):  # the end is where checksums are compared
                    raise ValueError(f"{name!r} is longer than the archive says")
                return stored
        except _DAMAGE as error:
            raise DamagedArrayError(str(error)) from error

    def __iter__(self) -> Iterator[str]:
        """The names of the arrays."""
        return iter(self._members)

    def __len__(self) -> int:
        """How many arrays there are."""
        return len(self._members)


def _members(archive: zipfile.ZipFile, size: int) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    listed = archive.infolist()
    if len(listed) > MAX_MEMBERS:
        raise ValueError(f"it has {len(listed):,} members, more than {MAX_MEMBERS:,}")
    names = [info.filename for info in listed]
    if len(set(names)) < len(names):
        raise ValueError("two members have one name")
    for info in listed:
        if info.compress_type not in _COMPRESSIONS or info.flag_bits & _ENCRYPTED:
            raise ValueError(f"{info.filename!r} is encrypted, or compressed in an unknown way")
        if not info.filename.endswith(".npy"):
            raise ValueError(f"{info.filename!r} is not an array")
        # Deflate makes at most 1,032 bytes of one.
        if info.compress_size > size or info.file_size > 1040 * max(info.compress_size, 1):
            raise ValueError(f"{info.filename!r} cannot have {info.file_size:,} bytes")
        yield info.filename.removesuffix(".npy"), info


def _read(file: IO[bytes], size: int) -> StoredArray:
    magic = file.read(len(_MAGIC) + 2)
    if magic[:-2] != _MAGIC or magic[-2] not in _LENGTHS:
        raise ValueError(f"it begins with {magic!r}, not like an array of numpy")
    form = _LENGTHS[magic[-2]]
    (length,) = struct.unpack(form, file.read(struct.calcsize(form)))
    if length > _MAX_HEADER:
        raise ValueError(f"its header has {length:,} bytes")
    text = file.read(length).decode("latin-1")
    found = _HEADER.fullmatch(text)
    if found is None:
        raise ValueError(f"its header is {text[:100]!r}, not that of numbers in C order")
    dtype, shape = found["dtype"], tuple(map(int, re.findall(r"\d+", found["shape"])))
    if len(shape) > MAX_RANK:
        raise ValueError(f"it has {len(shape)} dimensions")
    wanted = math.prod(shape) * int(dtype[2:])
    there = size - len(magic) - struct.calcsize(form) - length
    if wanted != there:
        raise ValueError(f"an array {dtype} of shape {shape} has {wanted:,} bytes, not {there:,}")
    data = file.read(wanted)
    if len(data) != wanted:
        raise ValueError(f"{len(data):,} of {wanted:,} bytes are there")
    return StoredArray(dtype, shape, data)
