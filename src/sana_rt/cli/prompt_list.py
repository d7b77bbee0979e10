"""A list of clips to make: a text file with a prompt a line, or with a JSON object a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from sana_rt import documents
from sana_rt.cli.wanted_size import Wanted
from sana_rt.documents import DocumentError
from sana_rt.errors import SanaRTError, UsageError

T = TypeVar("T")
U = TypeVar("U")

_SIZES: Final = Wanted.__dataclass_fields__.keys()
_SHOWN: Final = 5


class Line(NamedTuple):
    """A clip of the list: its line, from 1, its options, and its size as people say it."""

    number: int
    options: dict[str, Any]
    wanted: Wanted


def read(path: Path) -> tuple[Line, ...]:
    """The clips of a file. A line that begins with ``{`` is JSON; empty ones are passed over.

    Raises:
        UsageError: it is no text, has no clips, or has lines that are no clips, which are named.
    """
    try:
        text = documents.read_bytes(path).decode("utf-8-sig")
    except (DocumentError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}.") from error
    numbered = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    lines = [(number, line) for number, line in numbered if line]
    if not lines:
        raise UsageError(f"{path} has no prompts.", expected="one a line, as text or as JSON.")
    return judged(path, lines, lambda each: each[0], lambda each: _line(*each))


def judged(
    path: Path, items: Sequence[T], number: Callable[[T], int], make: Callable[[T], U]
) -> tuple[U, ...]:
    """What ``make`` makes of each item; all lines that are refused are counted, some named."""
    made: list[U] = []
    refused: list[str] = []
    for item in items:
        try:
            made.append(make(item))
        except SanaRTError as error:
            refused.append(f"line {number(item)}: {str(error).replace(chr(10), ' ')}")
    if refused:
        more = f"\n... and {len(refused) - _SHOWN:,} more" if len(refused) > _SHOWN else ""
        raise UsageError(
            f"{len(refused)} of the {len(items)} prompts of {path} cannot be played:\n"
            + "\n".join(refused[:_SHOWN])
            + more
        )
    return tuple(made)


def _line(number: int, text: str) -> Line:
    if not text.startswith("{"):
        return Line(number, {"prompt": text}, Wanted())
    from sana_rt.runtime.request import Request

    try:
        found = documents.json(text.encode(), dict[str, Any])
    except DocumentError as error:
        raise UsageError(f"It is not JSON: {error}.") from error
    known = (*Request.__struct_fields__, *_SIZES)
    if unknown := sorted(found.keys() - set(known)):
        raise UsageError(f"{unknown[0]!r} is unknown.", expected=f"keys among {', '.join(known)}.")
    if not isinstance(found.get("prompt"), str):
        raise UsageError("It has no prompt.", expected='{"prompt": "...", ...}.')
    sizes = {name: found.pop(name, None) for name in _SIZES}
    for name, value in sizes.items():
        kind = int | float if name == "seconds" else str
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise UsageError(
                f"{name} is {value!r}.",
                expected="a number." if name == "seconds" else "text.",
            )
    return Line(number, found, Wanted(**sizes))
