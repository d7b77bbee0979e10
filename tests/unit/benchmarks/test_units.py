"""Seconds and ratios in words."""

from __future__ import annotations

import pytest

from sana_rt.benchmarks import units


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (71.0, "71 s"),
        (1234.5, "1234 s"),
        (1.0, "1 s"),
        (0.99949, "999 ms"),
        (0.0123456, "12.3 ms"),
        (7.89e-6, "7.89 µs"),
        (0.0, "0 µs"),
    ],
)
def test_seconds_have_three_digits_and_a_unit(value: float, shown: str) -> None:
    assert units.seconds(value) == shown


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [(29 / 71, "2.45× as fast"), (1.0, "1.00× the time"), (2.231, "2.23× the time")],
)
def test_a_ratio_says_which_way_it_goes(ratio: float, shown: str) -> None:
    assert units.times(ratio) == shown
