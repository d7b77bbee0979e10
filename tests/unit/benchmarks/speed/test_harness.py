"""Turns are taken fairly; a side that fails is given up; unequal work is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest

from sana_rt.benchmarks.processes import Call, Outcome, Report
from sana_rt.benchmarks.speed import harness
from sana_rt.benchmarks.speed.card import Card
from sana_rt.benchmarks.speed.harness import Pace, Side
from sana_rt.benchmarks.speed.turn import Turn
from sana_rt.errors import BenchmarkError, ComparisonError

from .test_turn import WORK

TURN = Turn(
    WORK,
    "onnxruntime",
    "cpu",
    "float32",
    {"clip": (1.0,)},
    plans=False,
    device_bytes=None,
    card=None,
)


@dataclass
class Played:
    """A call without a process: it returns a turn, or fails in one of them."""

    order: list[str]
    name: str
    fails_in: int | None = None
    turn: Turn = TURN
    done: list[int] = field(default_factory=list)

    def run(self, report: Report) -> Outcome:
        self.order.append(self.name)
        self.done.append(1)
        report(1, 2)
        if len(self.done) == self.fails_in:
            raise BenchmarkError("It failed.")
        return Outcome(msgspec.to_builtins(self.turn), 100 * len(self.done))


def sides(order: list[str], **each: Any) -> list[Side]:
    return [
        Side(name, cast(Call, Played(order, name, **each.get(name, {}))))
        for name in ("a", "b", "c")
    ]


def test_who_begins_changes_from_round_to_round() -> None:
    order: list[str] = []
    rounds = harness.play(sides(order), 4, Card())
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert rounds.baseline == "a"
    assert [each.round for each in rounds.turns["c"]] == [0, 1, 2, 3]
    assert [each.peak_bytes for each in rounds.turns["b"]] == [100, 200, 300, 400]
    assert rounds.failures == {}


def test_a_side_that_fails_is_given_up_with_its_reason() -> None:
    order: list[str] = []
    rounds = harness.play(sides(order, b={"fails_in": 2}), 3, Card())
    assert list(rounds.turns) == ["a", "c"]
    assert rounds.failures == {"b": "It failed."}
    assert order.count("b") == 2
    assert order.count("c") == 3


def test_the_baseline_may_not_fail() -> None:
    for turn in (1, 2):
        with pytest.raises(BenchmarkError, match="It failed"):
            harness.play(sides([], a={"fails_in": turn}), 3, Card())


def test_other_work_than_the_baselines_is_refused_at_once() -> None:
    order: list[str] = []
    shorter = msgspec.structs.replace(TURN, work=msgspec.structs.replace(WORK, passes=8))
    with pytest.raises(ComparisonError, match=r"a and b did not .* passes is 16 and 8"):
        harness.play(sides(order, b={"turn": shorter}), 3, Card())
    assert order == ["a", "b"]


def test_every_turn_is_checked() -> None:
    seen: list[str] = []
    harness.play(sides([]), 2, Card(), check=lambda name, _: seen.append(name))
    assert "".join(seen) == "abc" + "bca"


def test_progress_says_who_plays_and_how_long_the_rest_takes() -> None:
    told: list[tuple[str, int, int]] = []
    harness.play(sides([]), 2, Card(), report=lambda *each: told.append(each))
    assert told[0] == ("a, round 1 of 2", 1, 2), "no estimate before anything was seen"
    assert told[1] == ("b, round 1 of 2, about 0 s left", 1, 2)
    assert len(told) == 6


def test_the_estimate_takes_each_side_as_long_as_it_took() -> None:
    pace = Pace()
    assert pace.seconds(["a"]) is None
    pace.took("a", 10)
    assert pace.seconds(["a", "b"]) == 20, "one that was not seen is taken for one like the others"
    pace.took("b", 100)
    pace.took("b", 200)
    assert pace.seconds(["a", "b", "b"]) == 10 + 150 + 150
    assert pace.told(["a"]) == ", about 10 s left"
    assert pace.told(["b"]) == ", about 2 min left"
