"""Two reports: ratios of equal work, conditions that differ, what is refused."""

from __future__ import annotations

import msgspec
import pytest

from sana_rt.benchmarks.speed import comparison
from sana_rt.benchmarks.speed.report import Report
from sana_rt.errors import ComparisonError, UsageError

from .conftest import scaled

replace = msgspec.structs.replace


def test_a_ratio_is_the_second_over_the_first(report: Report) -> None:
    found = comparison.compare(report, scaled(report, 1.2))
    assert {(row.side, row.boundary) for row in found.rows} == {
        (side.name, boundary) for side in report.sides for boundary in side.boundaries
    }
    for row in found.rows:
        assert row.after == pytest.approx(1.2 * row.before)
        assert row.ratio.median == pytest.approx(1.2)
        assert row.ratio.count == 9
        assert row.ratio.most == pytest.approx(12), "one round was ten times slower"


def test_what_became_slower_than_a_limit(report: Report) -> None:
    found = comparison.compare(report, scaled(report, 1.2)).only(["clip"])
    assert [row.side for row in found.slower(1.1)] == ["fp32", "nvfp4-max", "diffusers-eager"]
    assert found.slower(1.3) == ()


def test_conditions_that_differ_are_told_the_load_is_not(report: Report) -> None:
    other = {**report.conditions, "processor": "two", "load_average": 7.0, "numpy": "2.4"}
    side = replace(report.sides[0], backend="onnxruntime-cuda")
    after = replace(report, conditions=other, sides=(side,), created_by="sana-rt 0.1")
    found = comparison.compare(report, after)
    assert found.conditions == {
        "processor": ("one", "two"),
        "backend of fp32": ("onnxruntime", "onnxruntime-cuda"),
        "backend of nvfp4-max": ("onnxruntime", None),
        "backend of diffusers-eager": ("diffusers, eager", None),
        "created_by": ("sana-rt 0.0", "sana-rt 0.1"),
        "numpy": (None, "2.4"),
    }
    assert found.only_before == ("nvfp4-max", "diffusers-eager")
    assert found.only_after == ()


@pytest.mark.parametrize("field", ["num_inference_steps", "guidance_scale", "height", "prompts"])
def test_other_work_is_refused_by_name(report: Report, field: str) -> None:
    work = replace(report.work, **{field: getattr(report.work, field) + 1})
    with pytest.raises(ComparisonError, match=field):
        comparison.compare(report, replace(report, work=work))


@pytest.mark.parametrize(("field", "value"), [("device", "cuda"), ("dtype", "bfloat16")])
def test_a_side_that_is_another_is_refused(report: Report, field: str, value: str) -> None:
    sides = (replace(report.sides[0], **{field: value}), *report.sides[1:])
    with pytest.raises(ComparisonError, match=f"fp32 has the {field} .* and {value}"):
        comparison.compare(report, replace(report, sides=sides))


def test_reports_without_a_common_side_are_refused(report: Report) -> None:
    one, other = (replace(report, sides=sides) for sides in (report.sides[:1], report.sides[1:]))
    with pytest.raises(ComparisonError, match="no side in common: fp32, and nvfp4-max"):
        comparison.compare(one, other)


def test_a_boundary_that_is_not_there_is_refused(report: Report) -> None:
    found = comparison.compare(report, report)
    assert {row.boundary for row in found.only(["clip", "load"]).rows} == {"clip", "load"}
    assert found.only([]) == found
    with pytest.raises(UsageError, match="no boundary 'commit'"):
        found.only(["clip", "commit"])
