"""How far a command is, on stderr: a bar on a terminal, lines of text elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from sana_rt.cli import output
from sana_rt.progress import ReportProgress

T = TypeVar("T")

_SECONDS: Final = 10.0  # between two lines about the same


class Lines:
    """Progress for a log: a line when something begins or ends, and every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: dict[str, tuple[float, int]] = {}  # when, and how many were done

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print a line if it is time for one."""
        before, counted = self._said.get(what, (float("-inf"), -1))
        ended = done == total and counted != done
        if ended or time.monotonic() - before >= _SECONDS:
            self._console.print(f"{what}: {done} of {total}")
            self._said[what] = time.monotonic(), done


@contextlib.contextmanager
def shown(beginning: str) -> Iterator[ReportProgress]:
    """Show progress while the block runs; ``beginning`` until the first report."""
    console = output.stderr()
    if not console.is_terminal:
        console.print(f"{beginning} ...")
        yield Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        task = bars.add_task(beginning, total=None)

        def report(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield report


def counted(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, while their progress is shown."""
    with shown(what) as report:
        for done, item in enumerate(items):
            report(what, done, total)
            yield item
