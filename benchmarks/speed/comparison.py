"""Two reports of the same work, side by side: did a change make it faster or slower?"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from sana_rt.benchmarks.conditions import Condition, Conditions, differences
from sana_rt.benchmarks.speed.report import Report, SideReport
from sana_rt.benchmarks.spread import Spread, unpaired
from sana_rt.errors import ComparisonError, UsageError
from sana_rt.model_spec import Frozen

#: Conditions of a moment, in which any two reports differ.
_MOMENTARY = ("load_average",)


class Row(Frozen, frozen=True):
    """A boundary of one side in both reports; ``ratio`` is the second's time over the first's.

    The reports were not taken in turns, so the ratio is of all quotients of their rounds, and a
    machine that was slower for one of them is not told from code that was.
    """

    side: str
    boundary: str
    before: float  # median, in seconds
    after: float
    ratio: Spread


class Comparison(Frozen, frozen=True):
    """The boundaries that both reports have, what only one has, and conditions that differ."""

    rows: tuple[Row, ...]
    only_before: tuple[str, ...]  # sides
    only_after: tuple[str, ...]
    conditions: dict[str, tuple[Condition, Condition]]

    def only(self, boundaries: Collection[str]) -> Comparison:
        """With the rows of these boundaries alone; of all where there are none.

        Raises :class:`UsageError` for a boundary that neither report has.
        """
        known = {row.boundary: None for row in self.rows}
        unknown = [name for name in boundaries if name not in known]
        if unknown:
            raise UsageError(
                f"There is no boundary {unknown[0]!r} in both reports.",
                expected=f"one of {', '.join(known)}.",
            )
        rows = tuple(row for row in self.rows if row.boundary in (boundaries or known))
        return msgspec.structs.replace(self, rows=rows)

    def slower(self, limit: float) -> tuple[Row, ...]:
        """The rows whose ratio is above ``limit``."""
        return tuple(row for row in self.rows if row.ratio.median > limit)


def compare(before: Report, after: Report) -> Comparison:
    """Compare the sides of the same name.

    Raises:
        ComparisonError: the work differs, a side played on another kind of device or in another
            type, or no side is in both.
    """
    before.work.check(after.work, ("The first report", "the second"))
    shared = [side for side in before.sides if after.side(side.name) is not None]
    if not shared:
        raise ComparisonError(
            f"The reports have no side in common: {_names(before)}, and {_names(after)}.",
            expected="two reports with variants of the same names.",
        )
    rows: list[Row] = []
    for side in shared:
        other = after.side(side.name)
        assert other is not None
        rows.extend(_rows(side, other))
    mine, others = _conditions(before), _conditions(after)
    return Comparison(
        rows=tuple(rows),
        only_before=tuple(s.name for s in before.sides if after.side(s.name) is None),
        only_after=tuple(s.name for s in after.sides if before.side(s.name) is None),
        conditions=differences(mine, others),
    )


def _rows(before: SideReport, after: SideReport) -> list[Row]:
    for name in ("kind", "device", "dtype"):
        values = getattr(before, name), getattr(after, name)
        if values[0] != values[1]:
            raise ComparisonError(
                f"{before.name} has the {name} {values[0]} in the first report and {values[1]} in "
                "the second.",
                expected="the same side in both.",
            )
    return [
        Row(
            before.name,
            boundary,
            first.spread.median,
            after.boundaries[boundary].spread.median,
            unpaired(after.boundaries[boundary].rounds, first.rounds),
        )
        for boundary, first in before.boundaries.items()
        if boundary in after.boundaries
    ]


def _conditions(report: Report) -> Conditions:
    """Everything that may differ without making the work another one."""
    found = {name: value for name, value in report.conditions.items() if name not in _MOMENTARY}
    if report.card is not None:
        found |= {
            f"card {name}": each for name, each in msgspec.structs.asdict(report.card).items()
        }
    found |= {f"backend of {side.name}": side.backend for side in report.sides}
    return found | {"created_by": report.created_by, "quick": report.quick}


def _names(report: Report) -> str:
    return ", ".join(side.name for side in report.sides)
