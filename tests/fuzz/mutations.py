"""Ways to spoil a file: some know its format, one knows bytes only."""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

_NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    2**31,
    2**53,
    2**63,
    2**64,
    10**9,
    10**30,
    0.0,
    -0.5,
    1e308,
    1e-308,
)
_TEXTS = (
    "",
    "x",
    "../../etc/passwd",
    "/dev/zero",
    "\x1b[2J",
    "\ud800",
    "nan",
    "é" * 100,
    "a" * 70000,
)
_TOKENS = (b"NaN", b"-Infinity", b"1e400", b"0x10", b"null", b"true", b"[", b"{", b'"', b"\\u0000")


def of_bytes(data: bytes, random: Random) -> bytes:
    """Flip, cut, repeat, insert; a few times."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at = random.randrange(len(content) + 1)
        length = min(len(content) - at, random.choice((1, 2, 4, 8, 64, 512)))
        kind = random.randrange(6)
        if kind == 0 and length:
            content[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            del content[at : at + length]
        elif kind == 2:
            content[at:at] = content[at : at + length]
        elif kind == 3:
            content[at:at] = random.randbytes(length or 1)
        elif kind == 4:
            content[at : at + 8] = struct.pack("<q", random.choice((-1, 0, 2**31, 2**62)))
        else:
            del content[at:]
    return bytes(content)


def of_json(data: bytes, random: Random) -> bytes:
    """Replace, remove, add or repeat a value somewhere in a JSON document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return of_bytes(data, random)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document = _spoil(document, random)
    text = json.dumps(document, allow_nan=True).encode(errors="surrogatepass")
    if random.random() < 0.1:  # what no JSON library writes
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(_TOKENS) + text[at:]
    return text


def _spoil(document: Any, random: Random) -> Any:
    places = list(_places(document))
    if not places:
        return _value(random, document)
    parent, key = random.choice(places)
    kind = random.randrange(5)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[random.choice((*_TEXTS[:3], f"{key}_", str(key).upper()))] = parent[key]
    elif kind == 1:
        parent.insert(key, parent[key])
    elif kind == 2:
        parent[key] = random.choice(places)[0]
        return _without_cycles(document)
    else:
        parent[key] = _value(random, parent[key])
    return document


def _places(document: Any) -> Any:
    children = document.items() if isinstance(document, dict) else ()
    if isinstance(document, list):
        children = enumerate(document)
    for key, value in list(children):
        yield document, key
        yield from _places(value)


def _without_cycles(document: Any, depth: int = 0) -> Any:
    if depth > 12:
        return None
    if isinstance(document, dict):
        return {key: _without_cycles(value, depth + 1) for key, value in document.items()}
    if isinstance(document, list):
        return [_without_cycles(value, depth + 1) for value in document]
    return document


def _value(random: Random, before: Any) -> Any:
    nested: Any = before
    for _ in range(random.choice((2, 20, 300))):
        nested = [nested]
    return random.choice(
        (None, True, False, [], {}, [before] * 3, {"a": before}, nested)
        + (random.choice(_NUMBERS),) * 4
        + (random.choice(_TEXTS),) * 3
        + (float("nan"), float("inf"), str(before)[:1000])
    )


def of_text(data: bytes, random: Random) -> bytes:
    """Replace a number, a word or a line of a text; repeat or drop lines."""
    lines = data.decode(errors="replace").splitlines(keepends=True)
    if not lines:
        return of_bytes(data, random)
    at = random.randrange(len(lines))
    kind = random.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        new = str(random.choice((*_NUMBERS, "9" * 5000, "nan", "inf")))
        lines[at] = re.sub(r"-?\d+(\.\d+)?", lambda _: new, lines[at], count=1)
    else:
        new = random.choice((*_TEXTS[:3], "[" * 3000, "= =", '"""', "[[a]]\n", "a.b.c = 1\n"))
        lines[at] = re.sub(r"\w+", lambda _: new, lines[at], count=1)
    return "".join(lines).encode(errors="surrogatepass")


def of_zip(data: bytes, random: Random) -> bytes:
    """Spoil one member of an archive, or its name, and write the archive as it should be."""
    members = _members(data)
    if not members:
        return of_bytes(data, random)
    index = random.randrange(len(members))
    name, content = members[index]
    kind = random.randrange(4)
    if kind == 0:
        del members[index]
    elif kind == 1:
        name = random.choice((f"x{name}", "../up.npy", name.upper(), "x"))
        members[index] = (name, content)
    elif kind == 2:
        members[index] = (name, of_json(content, random))
    else:
        members[index] = (name, _header(content, random))
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # about names that are there twice
        for each, value in members:
            archive.writestr(each, value)
    return buffer.getvalue()


def _members(data: bytes) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [(name, archive.read(name)) for name in archive.namelist()]
    except (*_UNREADABLE, zipfile.BadZipFile, zlib.error):
        return []


_UNREADABLE = (EOFError, NotImplementedError, OSError, RuntimeError, ValueError)


def of_npy(data: bytes, random: Random) -> bytes:
    """Let the header of an array tell another shape or type."""
    return _header(data, random)


def _header(content: bytes, random: Random) -> bytes:
    head = content[:256].decode("latin-1")
    if random.random() < 0.5:
        new = str(random.choice(_NUMBERS))
        head = re.sub(r"(\(|, )\d+", lambda found: found[1] + new, head, count=1)
    else:
        new = random.choice(("|O", "<f8", "<c16", "<U9", "|V7", "<f2", "<M8[s]", ">i8", "<i99"))
        head = re.sub(r"'[<>|][a-z]\d+'", lambda _: f"'{new}'", head, count=1)
    return head.encode("latin-1") + content[256:]


def of_safetensors(data: bytes, random: Random) -> bytes:
    """Spoil the JSON header, with its length put right."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data):
        return of_bytes(data, random)
    header = of_json(data[8 : 8 + length], random)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def any_of(mutations: Sequence[Mutation]) -> Mutation:
    """One of them, each time."""

    def mutate(data: bytes, random: Random) -> bytes:
        return random.choice(list(mutations))(data, random)

    return mutate
