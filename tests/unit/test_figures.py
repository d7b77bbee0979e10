"""Figures as files that do not change from one drawing to the next."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from sana_rt import figures


def _figure() -> Figure:
    figure = Figure(figsize=(2, 2))
    figure.add_subplot().plot([1, 2], label="line")
    return figure


@pytest.mark.parametrize("file_format", figures.FORMATS)
def test_the_same_figure_gives_the_same_bytes(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = set()
    for when in ("0", "1000000000"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", when)
        drawn.add(figures.encode(_figure(), file_format))
    assert len(drawn) == 1
