"""The report of a benchmark: what was measured, of what, and under which conditions.

Its JSON has the schema docs/bench.schema.json.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from sana_rt import documents
from sana_rt.benchmarks.conditions import Conditions
from sana_rt.benchmarks.speed.bounds import BoundCard, GraphShare
from sana_rt.benchmarks.speed.card import CardIdentity, Readings
from sana_rt.benchmarks.speed.harness import Rounds
from sana_rt.benchmarks.speed.kernels import KernelShares
from sana_rt.benchmarks.speed.turn import APART, BOUNDARIES, TurnCard, Work
from sana_rt.benchmarks.spread import Spread, paired
from sana_rt.errors import UsageError
from sana_rt.files import write_bytes
from sana_rt.model_spec import Count, Frozen, Natural

FORMAT: Final = "sana-rt-bench"
FORMAT_VERSION: Final = 1
RULE: Final = (
    "medians of all measurements with their quartiles; a ratio is the time over the baseline's, "
    "below 1 is faster, the median of the ratios of the rounds"
)


class Measurement(Frozen, frozen=True):
    """A boundary in seconds: all measurements, the median of each round, and the ratio.

    ``ratio`` is to the baseline, of round by round; None for the baseline, and where the
    boundary holds something else from side to side or the baseline has none.
    """

    spread: Spread
    rounds: tuple[float, ...]
    ratio: Spread | None


class SideReport(Frozen, frozen=True):
    """One side. ``latents_difference`` is relative to the baseline's, in the Euclidean norm."""

    name: str
    kind: Literal["variant", "diffusers"]
    backend: str
    device: Literal["cpu", "cuda"]
    dtype: str
    recipe: str | None
    boundaries: dict[str, Measurement]
    host_peak_bytes: Natural | None
    device_bytes: Natural | None
    readings: Readings | None
    latents_difference: float
    graphs: tuple[GraphShare, ...]
    bound: BoundCard | None
    kernels: tuple[KernelShares, ...] = ()  # of plans that were played
    card: TurnCard | None = None


class Report(Frozen, frozen=True):
    """All sides, the baseline first, and what they did."""

    format: Literal["sana-rt-bench"]
    format_version: Literal[1]
    created_by: str
    began: str  # UTC, ISO 8601
    command: str
    quick: bool
    rule: str
    work: Work
    prompts: tuple[str, ...]
    seeds: tuple[Natural, ...]
    rounds: Count
    conditions: Conditions
    card: CardIdentity | None
    no_card: str  # why nothing was read of a card
    sides: tuple[SideReport, ...]
    not_measured: dict[str, str]  # why, by side or part of one

    @property
    def baseline(self) -> SideReport:
        """What the others are compared with."""
        return self.sides[0]

    def side(self, name: str) -> SideReport | None:
        """The side called so."""
        return next((side for side in self.sides if side.name == name), None)


def measurements(rounds: Rounds, name: str) -> dict[str, Measurement]:
    """The boundaries of a side, with ratios to the baseline."""
    medians = _medians(rounds, name)
    baseline = _medians(rounds, rounds.baseline)
    found = {}
    for boundary in BOUNDARIES:
        if boundary not in medians:
            continue
        values = [value for each in rounds.turns[name] for value in each.turn.seconds[boundary]]
        comparable = name != rounds.baseline and boundary in baseline and boundary not in APART
        ratio = paired(medians[boundary], baseline[boundary]) if comparable else None
        found[boundary] = Measurement(Spread.of(values), medians[boundary], ratio)
    return found


def read(path: Path) -> Report:
    """The report in a JSON file; :class:`UsageError` if it is not one."""
    return documents.read(
        path,
        documents.json,
        Report,
        lambda reason: UsageError(
            f"{path} is not a report of `sana-rt bench`: {reason}.",
            expected=f"the report.json that it writes (format version {FORMAT_VERSION}).",
        ),
    )


def write(report: Frozen, path: Path) -> None:
    """Write a report as indented JSON."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a report."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **json.loads(msgspec.json.encode(msgspec.json.schema(Report))),
    }


def _medians(rounds: Rounds, name: str) -> Mapping[str, tuple[float, ...]]:
    """The median of each round, by boundary."""
    turns = sorted(rounds.turns[name], key=lambda each: each.round)
    return {
        boundary: tuple(statistics.median(each.turn.seconds[boundary]) for each in turns)
        for boundary in turns[0].turn.seconds
    }


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.format(json.dumps(schema()), indent=2) + "\n")
