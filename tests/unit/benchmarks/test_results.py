"""Published figures are in the form that the programs write today."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sana_rt import benchmarks
from sana_rt.benchmarks.quality import compare
from sana_rt.benchmarks.speed.export_memory import ExportReport
from sana_rt.benchmarks.speed.max_memory import MaxMemoryReport
from sana_rt.benchmarks.speed.native import NativeReport
from sana_rt.benchmarks.speed.report import Report
from sana_rt.benchmarks.speed.streaming import StreamingReport

RESULTS = Path(benchmarks.__file__).parent / "results"
REPORTS = {
    "bench-shapes": Report,
    "export-memory": ExportReport,
    "max-memory": MaxMemoryReport,
    "native": NativeReport,
    "quality-shapes": compare.Report,
    "streaming": StreamingReport,
}


def test_every_file_has_a_program() -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} == set(REPORTS)


@pytest.mark.parametrize("name", REPORTS)
def test_a_file_is_what_its_program_writes(name: str) -> None:
    data = RESULTS.joinpath(f"{name}.json").read_bytes()
    report = msgspec.json.decode(data, type=REPORTS[name])
    assert msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n" == data


@pytest.mark.parametrize(
    "name", ["bench-shapes", "export-memory", "max-memory", "native", "streaming"]
)
def test_seconds_and_bytes_come_with_their_conditions(name: str) -> None:
    conditions = msgspec.json.decode(RESULTS.joinpath(f"{name}.json").read_bytes())["conditions"]
    assert {"processor", "cores", "threads", "load_average", "python", "sana-rt"} <= set(conditions)
