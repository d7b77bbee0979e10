"""Measurements as people read them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """Three digits of seconds: ``12.3 s``, ``45.6 ms``, ``7.89 µs``."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{_digits(value * factor)} {unit}"
    return f"{_digits(value * 1e6)} µs"


def times(ratio: float) -> str:
    """A ratio of times to a baseline's: how many times as fast, or as long."""
    return f"{1 / ratio:.2f}× as fast" if ratio < 1 else f"{ratio:.2f}× the time"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
