"""Ratios are of rounds, and of boundaries that hold the same; the JSON has a schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from sana_rt.benchmarks.speed import report as reports
from sana_rt.benchmarks.speed.harness import Rounds
from sana_rt.benchmarks.speed.report import Report
from sana_rt.errors import UsageError

SCHEMA = Path(__file__).parents[4] / "docs/bench.schema.json"


def test_ratios_are_of_rounds(rounds: Rounds) -> None:
    clip = reports.measurements(rounds, "nvfp4-max")["clip"]
    assert clip.rounds == pytest.approx((1.625, 1.625, 16.25))
    assert clip.spread.count == 6
    assert clip.ratio is not None
    assert (clip.ratio.least, clip.ratio.most, clip.ratio.count) == pytest.approx((0.5, 0.5, 3))


def test_what_holds_something_else_from_side_to_side_has_no_ratio(rounds: Rounds) -> None:
    theirs = reports.measurements(rounds, "diffusers-eager")
    assert theirs["warm_up"].ratio is None
    assert "compile" not in theirs
    assert theirs["load"].ratio is not None
    ours = reports.measurements(rounds, "nvfp4-max")
    assert ours["compile"].ratio is None
    assert list(ours) == ["load", "compile", "warm_up", "text", "step", "denoise", "decode", "clip"]


def test_the_baseline_is_compared_with_nothing(rounds: Rounds) -> None:
    assert {each.ratio for each in reports.measurements(rounds, "fp32").values()} == {None}


def test_a_report_is_read_as_it_was_written(report: Report, tmp_path: Path) -> None:
    reports.write(report, tmp_path / "report.json")
    assert reports.read(tmp_path / "report.json") == report
    jsonschema.validate(json.loads((tmp_path / "report.json").read_text()), reports.schema())


@pytest.mark.parametrize("text", ["", "{}", '{"format": "sana-rt-bench"}', "[1]"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UsageError, match="is not a report of `sana-rt bench`"):
        reports.read(tmp_path / "other.json")


def test_the_schema_in_the_docs_is_the_codes() -> None:
    """Written by: python -m sana_rt.benchmarks.speed.report > docs/bench.schema.json"""
    assert json.loads(SCHEMA.read_text()) == reports.schema()
    jsonschema.Draft202012Validator.check_schema(reports.schema())
