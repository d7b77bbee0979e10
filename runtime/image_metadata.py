"""What a picture's file says beside its pixels: which way up it is, its colours, its frames."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

Orientation = Literal[1, 2, 3, 4, 5, 6, 7, 8]

_UPRIGHT: Final = 1
_ORIENTATION_TAG: Final = 0x0112
_SHORT: Final = 3  # the type of its value
_EXIF: Final = b"Exif\0\0"
_ENTRY_BYTES: Final = 12
_JPEG_PROFILE: Final = b"ICC_PROFILE\0"
_PROFILE_BYTES: Final = 1 << 16  # far behind the tags that name it
_WEBP_ANIMATION: Final = 0x02  # a flag of the chunk VP8X


class _Part(NamedTuple):
    """A named piece of a file."""

    name: bytes
    data: memoryview


def orientation(data: bytes) -> Orientation:
    """How the stored rows and columns are to be turned, as EXIF numbers it; 1 is not at all.

    Damaged EXIF is none.
    """
    for part in _parts(data):
        if part.name in (b"eXIf", b"EXIF", b"\xe1"):
            found = _orientation(bytes(part.data).removeprefix(_EXIF))
            if found is not None:
                return found
    return _UPRIGHT


def is_animated(data: bytes) -> bool:
    """Whether the file has several frames: an animated PNG or WebP."""
    return any(
        part.name == b"acTL"
        or (part.name == b"VP8X" and len(part.data) > 0 and bool(part.data[0] & _WEBP_ANIMATION))
        for part in _parts(data)
    )


def colour_profile(data: bytes) -> bytes | None:
    """The beginning of the ICC profile in a file; empty if that is damaged, None without one."""
    for part in _parts(data):
        content = bytes(part.data[:_PROFILE_BYTES])
        if part.name == b"\xe2" and content.startswith(_JPEG_PROFILE):
            return content
        if part.name == b"ICCP":
            return content
        if part.name == b"iCCP":  # a name, a zero, the method, the profile compressed
            packed = content.partition(b"\0")[2][1:]
            try:
                return zlib.decompressobj().decompress(packed, _PROFILE_BYTES)
            except zlib.error:
                return b""
    return None


def _parts(data: bytes) -> Iterator[_Part]:
    """The pieces of a file before its pixels, or all where these may come first."""
    view = memoryview(data)
    if data.startswith(b"\x89PNG"):
        yield from _chunks(view, 8, "big")
    elif data.startswith(b"RIFF"):
        yield from _chunks(view, 12, "little")
    elif data.startswith(b"\xff\xd8"):
        yield from _segments(view)


def _chunks(view: memoryview, start: int, order: Literal["big", "little"]) -> Iterator[_Part]:
    """PNG's chunks (length, name, data, check) or WebP's (name, length, data, padding)."""
    png = order == "big"
    while start + 8 <= len(view):
        first, second = view[start : start + 4], view[start + 4 : start + 8]
        length = int.from_bytes(first if png else second, order)
        yield _Part(bytes(second if png else first), view[start + 8 : start + 8 + length])
        start += 8 + length + (4 if png else length % 2)


def _segments(view: memoryview) -> Iterator[_Part]:
    """JPEG's segments up to the first scan, whose data has no length."""
    start = 2
    while start + 4 <= len(view) and view[start] == 0xFF:
        marker = bytes(view[start + 1 : start + 2])
        if marker == b"\xff":  # filling
            start += 1
            continue
        if marker == b"\xda":
            return
        length = int.from_bytes(view[start + 2 : start + 4], "big")
        yield _Part(marker, view[start + 4 : start + 2 + length])
        start += 2 + max(length, 2)


def _orientation(exif: bytes) -> Orientation | None:
    """The orientation in EXIF, which is a TIFF without pixels: in its first directory."""
    order: Literal["big", "little"] = "little" if exif.startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    directory = number(4, 4)
    for index in range(min(number(directory, 2), len(exif) // _ENTRY_BYTES)):
        entry = directory + 2 + index * _ENTRY_BYTES
        if (number(entry, 2), number(entry + 2, 2)) == (_ORIENTATION_TAG, _SHORT):
            value = number(entry + 8, 2)
            return value if value in range(1, 9) else None  # type: ignore[return-value]
    return None
