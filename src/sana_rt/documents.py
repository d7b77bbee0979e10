"""Small documents, JSON and TOML, read with bounds and turned into typed values."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from sana_rt.errors import SanaRTError
from sana_rt.files import read_at_most, storage_errors

T = TypeVar("T")

MAX_BYTES: Final = 64 << 20
_SHOWN: Final = 300


class DocumentError(ValueError):
    """What is wrong with a document; callers name the file in their own error."""


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a file of at most ``limit`` bytes; more is a :class:`DocumentError`."""
    with storage_errors(path), path.open("rb") as file:
        data = read_at_most(file, limit + 1)
    if len(data) > limit:
        raise DocumentError(f"it has more than {limit:,} bytes")
    return data


def json(data: bytes, kind: type[T]) -> T:
    """A JSON document as ``kind``; anything wrong with it is a :class:`DocumentError`."""
    return _parsed(lambda: msgspec.json.decode(data, type=kind))


def toml(data: bytes, kind: type[T]) -> T:
    """A TOML document as ``kind``; anything wrong with it is a :class:`DocumentError`."""
    return _parsed(lambda: msgspec.convert(tomllib.loads(data.decode()), kind))


def read(
    path: Path,
    parse: Callable[[bytes, type[T]], T],
    kind: type[T],
    error: Callable[[str], SanaRTError],
) -> T:
    """The document at ``path`` as ``kind``.

    ``parse`` is :func:`json` or :func:`toml`; what is wrong is raised as ``error``, which is given
    the reason. Raises :class:`StorageError` where the file cannot be read.
    """
    try:
        return parse(read_bytes(path), kind)
    except DocumentError as reason:
        raise error(str(reason)) from reason


def _parsed(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except RecursionError as error:
        raise DocumentError("it is nested too deeply") from error
    except (ValueError, msgspec.MsgspecError) as error:  # UTF-8, syntax, digits, types
        text = str(error)
        raise DocumentError(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...") from error
