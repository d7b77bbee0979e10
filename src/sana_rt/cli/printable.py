"""Text of unknown origin, as it may go to a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """``text`` with control characters escaped: what files say must not steer a terminal."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char).startswith("C") and char != "\n"
        else char
        for char in text
    )
