"""Several measurements of the same, and ratios of measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from sana_rt.model_spec import Count, Frozen


class Spread(Frozen, frozen=True):
    """The median of some measurements, their middle half, their extremes, and their number."""

    median: float
    lower_quartile: float
    upper_quartile: float
    least: float
    most: float
    count: Count

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The spread of at least one value; quartiles interpolate between values."""
        lower, median, upper = _quartiles(values)
        return Spread(median, lower, upper, min(values), max(values), len(values))


def paired(values: Iterable[float], baseline: Iterable[float]) -> Spread:
    """The ratios of values to those of the baseline that were taken beside them.

    What the machine does meanwhile meets both of a pair, and so cancels.
    """
    return Spread.of([value / other for value, other in zip(values, baseline, strict=True)])


def unpaired(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """The ratio of values that were not taken in turns with the baseline's: all quotients.

    Their median is the estimator of Hodges and Lehmann (1963) for a shift, here of logarithms.
    """
    return Spread.of([value / other for value in values for other in baseline])


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper
