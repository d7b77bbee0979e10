"""What long tasks call to say how far they are."""

from __future__ import annotations

from collections.abc import Callable

#: Called with what is being done, how many are done, and how many there are.
ReportProgress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""
