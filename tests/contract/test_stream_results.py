"""What the documents say of long streams is what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from sana_rt.benchmarks.speed.streaming import StreamingReport

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?%?")


@pytest.fixture(scope="module")
def report() -> StreamingReport:
    return msgspec.json.decode(
        (ROOT / "benchmarks/results/streaming.json").read_bytes(), type=StreamingReport
    )


def test_neither_memory_nor_pace_depends_on_the_length(report: StreamingReport) -> None:
    short, long = report.runs
    assert (round(short.video_seconds), round(long.video_seconds)) == (20, 300)
    assert abs(long.peak_resident_bytes / short.peak_resident_bytes - 1) <= 0.01
    assert report.cpu_slope.low <= 0 <= report.cpu_slope.high
    for run in report.runs:
        assert run.allocations_after_first_chunk == 0
        assert run.state_bytes == run.predicted_state_bytes


def test_the_figures_are_those_of_the_results(report: StreamingReport) -> None:
    short, long = (run.peak_resident_bytes / 2**20 for run in report.runs)
    slope = report.cpu_slope
    chunk = report.runs[0].chunk_latent_frames[1]
    lines = (ROOT / "docs/streaming.md").read_text().splitlines()
    (measured,) = [line for line in lines if "results/streaming.json" in line]
    figures = {
        f"{short:.1f}",
        f"{long:.1f}",
        f"{report.peak_growth:+.2%}",
        f"{slope.mean:.3f}",
        str(chunk),
        f"{slope.low * 1e6:+.0f}",
        f"{slope.high * 1e6:+.0f}",
        str(report.conditions["load_average"]),
    }
    assert figures - set(NUMBER.findall(measured)) == set()
