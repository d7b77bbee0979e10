"""Medians, quartiles and ratios, against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from sana_rt.benchmarks.spread import Spread, paired, unpaired


def test_a_spread_is_numpys() -> None:
    values = np.random.default_rng(0).lognormal(size=101)
    expected = np.quantile(values, [0.5, 0.25, 0.75, 0, 1])
    found = Spread.of(values.tolist())
    shown = (found.median, found.lower_quartile, found.upper_quartile, found.least, found.most)
    assert shown == pytest.approx(tuple(expected))
    assert found.count == 101


def test_one_value_is_its_own_spread() -> None:
    assert Spread.of([2.5]) == Spread(2.5, 2.5, 2.5, 2.5, 2.5, 1)


def test_pairs_cancel_what_meets_both() -> None:
    """A machine that becomes ten times slower leaves the ratio of neighbours as it was."""
    slowness = [1.0, 1.0, 5.0, 10.0]
    ratio = paired([3 * each for each in slowness], [2 * each for each in slowness])
    assert ratio == Spread(1.5, 1.5, 1.5, 1.5, 1.5, 4)


def test_pairs_need_a_partner_each() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired([1.0, 2.0], [1.0])


def test_unpaired_values_are_compared_with_all_others() -> None:
    random = np.random.default_rng(1)
    before, after = random.lognormal(0, 0.1, 40), random.lognormal(np.log(1.3), 0.1, 30)
    found = unpaired(after.tolist(), before.tolist())
    quotients = np.divide.outer(after, before)
    assert found.median == pytest.approx(np.median(quotients))
    assert found.median == pytest.approx(1.3, rel=0.05)
    assert (found.least, found.most) == (quotients.min(), quotients.max())
    assert found.count == 1200
