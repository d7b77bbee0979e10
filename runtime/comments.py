"""The comment that an mp4, a GIF or a PNG carries: written into the last two, read from all three.

FFmpeg's muxers write an mp4's themselves, and neither of the others'. Reading follows the formats'
own tables of contents and decodes nothing, so it needs no package and no decoder that a file from
a stranger could upset.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from sana_rt.files import storage_errors

Tags = Mapping[str, str]  # "title" and "comment", FFmpeg's names

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES: Final = len(_PNG) + 4 + 4 + 13 + 4  # up to the end of the chunk IHDR
_GIF: Final = b"GIF8"
_GIF_COMMENT: Final = b"\x21\xfe"
_MP4_COMMENT: Final = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")
_BEFORE: Final = {b"meta": 4, b"data": 8}  # bytes between a box's header and what is in it
_MAX_BYTES: Final = 1 << 20


def png(data: bytes, tags: Tags) -> bytes:
    """A PNG with tags as UTF-8 text chunks (iTXt) behind its header."""
    chunks = b"".join(_text_chunk(name, text) for name, text in tags.items())
    return data[:_PNG_HEADER_BYTES] + chunks + data[_PNG_HEADER_BYTES:]


def gif(data: bytes, tags: Tags) -> bytes:
    """A GIF, or its beginning with the table of colours, with the comment in front of pictures."""
    text = tags.get("comment", "").encode()
    blocks = [text[at : at + 255] for at in range(0, len(text), 255)]
    comment = b"".join([bytes([len(block)]) + block for block in blocks])
    end = _gif_header_bytes(data)
    extension = _GIF_COMMENT + comment + b"\0" if text else b""
    return data[:end] + extension + data[end:]


def read(path: Path) -> str | None:
    """The comment of an mp4, a PNG or a GIF; None where there is none, or in another file."""
    with storage_errors(path), path.open("rb") as file:
        head = file.read(16)
        if head.startswith(_PNG):
            found = _read_png(file)
        elif head.startswith(_GIF):
            found = _read_gif(file)
        else:
            found = _read_mp4(file) if head[4:8] == b"ftyp" else None
    return None if found is None else found.decode("utf-8", "replace")


def _text_chunk(name: str, text: str) -> bytes:
    body = b"iTXt" + name.capitalize().encode("ascii") + b"\0\0\0\0\0" + text.encode()
    return (len(body) - 4).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)


def _read_png(file: IO[bytes]) -> bytes | None:
    file.seek(len(_PNG))
    while len(header := file.read(8)) == 8 and header[4:] != b"IDAT":
        size = int.from_bytes(header[:4])
        body = file.read(size) if header[4:] == b"iTXt" and size <= _MAX_BYTES else b""
        if body.startswith(b"Comment\0\0"):  # then compression, language and a translated keyword
            return body.split(b"\0", 5)[-1]
        file.seek(size - len(body) + 4, 1)
    return None


def _gif_header_bytes(head: bytes) -> int:
    """Up to the end of the global table of colours."""
    return 13 + (3 << ((head[10] & 7) + 1) if head[10] & 0x80 else 0)


def _read_gif(file: IO[bytes]) -> bytes | None:
    file.seek(0)
    head = file.read(13)
    file.seek(_gif_header_bytes(head) if len(head) == 13 else 0)
    if file.read(2) != _GIF_COMMENT:
        return None
    blocks: list[bytes] = []
    while (size := file.read(1)) > b"\0" and sum(map(len, blocks)) <= _MAX_BYTES:
        blocks.append(file.read(size[0]))
    return b"".join(blocks)


def _read_mp4(file: IO[bytes]) -> bytes | None:
    """Go down the boxes to the one of iTunes' ``©cmt``."""
    start, stop = 0, file.seek(0, 2)
    for kind in _MP4_COMMENT:
        found = _box(file, kind, start, stop)
        if found is None:
            return None
        start, stop = found[0] + _BEFORE.get(kind, 0), found[1]
    file.seek(start)
    return file.read(min(stop - start, _MAX_BYTES))


def _box(file: IO[bytes], kind: bytes, start: int, stop: int) -> tuple[int, int] | None:
    """Where the content of the first box of a kind begins and ends."""
    while start + 8 <= stop:
        file.seek(start)
        header = file.read(16)
        size, head = int.from_bytes(header[:4]), 8
        if size == 1:
            size, head = int.from_bytes(header[8:16]), 16
        end = start + size if size else stop
        if size and size < head:
            return None
        if header[4:8] == kind:
            return start + head, min(end, stop)
        start = end
    return None
