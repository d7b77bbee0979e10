"""Sides of a benchmark that take turns, each turn in a process of its own.

A round has one turn of every side; who begins changes from round to round. So what else the
machine does meets all sides alike, and a ratio is one of neighbours in time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from sana_rt.benchmarks.processes import Call, Report
from sana_rt.benchmarks.speed.card import Card, Reading
from sana_rt.benchmarks.speed.turn import Turn
from sana_rt.errors import SanaRTError
from sana_rt.progress import ReportProgress, silent


@dataclass(frozen=True)
class Side:
    """Something that plays: its name, and the call that is one of its turns."""

    name: str
    call: Call


@dataclass(frozen=True)
class Measured:
    """A turn in a round, the peak of its process in bytes, what was read of the card meanwhile."""

    round: int
    turn: Turn
    peak_bytes: int | None
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Rounds:
    """The turns of every side, the baseline first, and why a side was given up."""

    turns: dict[str, list[Measured]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """The side that the others are compared with."""
        return next(iter(self.turns))

    def add(self, name: str, measured: Measured) -> None:
        """Another turn; :class:`ComparisonError` unless its work is the baseline's."""
        if self.turns:
            first = self.turns[self.baseline][0].turn
            first.work.check(measured.turn.work, (self.baseline, name))
        self.turns.setdefault(name, []).append(measured)

    def give_up(self, name: str, error: SanaRTError) -> None:
        """A side failed: none of its turns count. Raises ``error`` if it is the baseline."""
        if not self.turns or name == self.baseline:
            raise error
        self.turns.pop(name, None)
        self.failures[name] = str(error)


def play(
    sides: Sequence[Side],
    rounds: int,
    card: Card,
    *,
    check: Callable[[str, Turn], None] = lambda _name, _turn: None,
    report: ReportProgress = silent,
) -> Rounds:
    """Let the sides take turns; the first is the baseline, whose work all must do.

    ``check`` is called with the name of the side after each turn, and may raise.

    Raises:
        ComparisonError: a side did other work than the baseline.
        SanaRTError: what the baseline's turn raised.
    """
    found, pace = Rounds(), Pace()
    turns = [(index, side) for index in range(rounds) for side in _rotated(sides, index)]
    for done, (index, side) in enumerate(turns):
        left = [each.name for _, each in turns[done:] if each.name not in found.failures]
        if side.name in found.failures:
            continue
        title = f"{side.name}, round {index + 1} of {rounds}{pace.told(left)}"
        begin = time.monotonic()
        try:
            measured = _turn(index, side, card, partial(report, title))
        except SanaRTError as error:
            found.give_up(side.name, error)
            continue
        pace.took(side.name, time.monotonic() - begin)
        found.add(side.name, measured)
        check(side.name, measured.turn)
    return found


class Pace:
    """How long turns took, and so how long those that are left will."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def took(self, name: str, seconds: float) -> None:
        """A turn of a side ended."""
        self._seconds.setdefault(name, []).append(seconds)

    def seconds(self, left: Iterable[str]) -> float | None:
        """How long turns of these sides will take; None while none ended.

        A side that had no turn is taken for one like the others.
        """
        known = {name: statistics.fmean(each) for name, each in self._seconds.items()}
        if not known:
            return None
        usual = statistics.fmean(known.values())
        return sum(known.get(name, usual) for name in left)

    def told(self, left: Iterable[str]) -> str:
        """The same in words, to put behind others."""
        seconds = self.seconds(left)
        if seconds is None:
            return ""
        told = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        return f", about {told} left"


def _rotated(sides: Sequence[Side], index: int) -> Iterator[Side]:
    first = index % len(sides)
    yield from (*sides[first:], *sides[:first])


def _turn(index: int, side: Side, card: Card, report: Report) -> Measured:
    with card.watched() as readings:
        outcome = side.call.run(report)
    turn = msgspec.convert(outcome.value, Turn)
    return Measured(index, turn, outcome.peak_bytes, tuple(readings))
