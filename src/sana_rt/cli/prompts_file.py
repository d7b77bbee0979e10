"""Prompts to play, from a text file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sana_rt import documents
from sana_rt.documents import DocumentError
from sana_rt.errors import UsageError


def read(path: Path) -> tuple[tuple[str, ...], str]:
    """The prompts of a text file, one a line, and the SHA-256 of the file."""
    try:
        data = documents.read_bytes(path)
        lines = [line.strip() for line in data.decode().splitlines()]
    except (DocumentError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}.") from error
    prompts = tuple(line for line in lines if line)
    if not prompts:
        raise UsageError(f"{path} has no prompts.", expected="one prompt per line.")
    return prompts, hashlib.sha256(data).hexdigest()
