"""Turns are taken fairly, ratios are of neighbours, memory is that of one process."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from sana_rt import machine
from sana_rt.benchmarks.speed import harness
from sana_rt.benchmarks.speed.harness import Spread
from sana_rt.errors import UsageError

MEBIBYTE = 1 << 20


def test_a_spread_is_the_quartiles() -> None:
    assert Spread.of([5, 1, 2, 4, 3]) == Spread(3, 2, 4, 5)


def test_the_sides_take_turns_and_who_begins_alternates() -> None:
    order = []

    def side(name: str, seconds: list[float]) -> list[float]:
        order.append(name)
        return seconds

    compared = harness.interleave(
        lambda: side("ours", [1.0, 2.0, 3.0]), lambda: side("reference", [3.0, 3.0, 30.0]), 4
    )
    warm_up, rounds = order[:2], order[2:]
    assert warm_up == ["ours", "reference"]
    assert rounds == ["ours", "reference", "reference", "ours"] * 2
    assert compared.ours.count == compared.reference.count == 12
    assert compared.ours.median == 2.0
    assert compared.ratio == Spread(1.5, 1.5, 1.5, 4)


def test_peak_memory_is_that_of_the_child_alone() -> None:
    ballast = np.ones(300 * MEBIBYTE, np.uint8)  # of this process, which is larger
    assert harness.told(machine.peak_resident_bytes()) > ballast.nbytes
    small = harness.peak_bytes("numpy:ones", {"shape": 1}, threads=1)
    large = harness.peak_bytes("numpy:ones", {"shape": 200 * MEBIBYTE, "dtype": "uint8"}, threads=1)
    assert small < 200 * MEBIBYTE
    assert large - small == pytest.approx(200 * MEBIBYTE, rel=0.1)


def test_a_child_that_fails_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        harness.peak_bytes("math:sqrt", {"x": -1}, threads=1)


def test_memory_that_the_system_does_not_tell_is_no_figure() -> None:
    with pytest.raises(UsageError, match="not known here"):
        harness.told(None)


def test_conditions_name_what_a_figure_depends_on() -> None:
    found = harness.conditions(["numpy"], threads=3)
    assert found["threads"] == 3
    assert found["numpy"] == np.__version__
    assert found["processor"] == machine.processor()
    assert found["instruction_set"] == machine.instruction_set()
    assert found["cores"] == machine.usable_cpus()
