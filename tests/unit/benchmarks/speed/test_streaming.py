"""The benchmark of streams: its arithmetic against numpy's, and a short run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sana_rt.benchmarks.conditions import conditions
from sana_rt.benchmarks.speed import streaming
from sana_rt.bundle import Bundle
from sana_rt.errors import UsageError


def test_the_slope_is_numpys() -> None:
    random = np.random.default_rng(3)
    seconds = 0.5 + 0.002 * np.arange(60) + random.normal(0, 0.03, 60)
    fit = streaming.slope([9.0, *seconds])
    (expected, _), covariance = np.polyfit(np.arange(60), seconds, 1, cov=True)
    assert fit.slope == pytest.approx(expected)
    # numpy's covariance divides by n - 2, too, since 1.16.
    narrow = 1.959964 * np.sqrt(covariance[0, 0])
    assert narrow * (1 - 1e-6) <= fit.high - fit.slope <= 1.3 * narrow
    assert fit.low < 0.002 < fit.high
    assert fit.low > 0, "a change that is there is seen"
    assert fit.mean == pytest.approx(seconds.mean())


def test_a_machine_that_is_slow_for_a_while_is_no_trend() -> None:
    """Noise that remembers 0.8 of itself: 95 % of the intervals hold 0, give or take."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        seconds = [0.0]
        for noise in random.normal(0, 0.01, 100):
            seconds.append(0.8 * seconds[-1] + noise)
        fit = streaming.slope(seconds)
        held += fit.low <= 0 <= fit.high
    assert held >= 0.85 * 200, "with independent residuals assumed it is about half"


def test_streams_are_measured_chunk_by_chunk_and_drawn(causal_bundle: Path, tmp_path: Path) -> None:
    runs = [streaming.measure(str(causal_bundle), seconds, 1) for seconds in (2, 4)]
    assert [run.frames for run in runs] == [17, 33]
    assert [run.chunk_latent_frames for run in runs] == [(3, 2), (3, 2, 2, 2)]
    for run in runs:
        assert run.state_bytes == run.predicted_state_bytes
        assert run.allocations_after_first_chunk == 0
        assert len(run.cpu_seconds) == len(run.wall_seconds) == len(run.chunk_latent_frames)
        assert run.peak_resident_bytes >= max(run.resident_bytes) > 50e6
    model = Bundle.read(causal_bundle).manifest.model
    with pytest.raises(UsageError, match="has 2 chunks"):
        streaming.report(runs[:1], model, 1)
    report = streaming.report(runs, model, 1)
    assert (report.model, report.height, report.width) == (model.name, 64, 64)
    assert report.conditions.keys() >= conditions((), 1).keys()
    streaming.draw(report, tmp_path / "plot.svg")
    assert "a stream of 4 s" in (tmp_path / "plot.svg").read_text()
