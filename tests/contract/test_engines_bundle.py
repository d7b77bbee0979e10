"""A whole bundle, from graphs to SM120 plans and reports, on a machine without a GPU."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

import sana_rt.engines
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.engines import builder, cards, plan_report, plan_table
from sana_rt.runtime import request
from sana_rt.runtime.session import Session

pytest.importorskip("tensorrt_rtx")


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def _json(*arguments: object) -> Any:
    result = _run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def built(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small bundle with the plans of its only variant for SM120."""
    root = tmp_path_factory.mktemp("plans") / "bundle"
    shutil.copytree(small_bundle, root)
    result = _run("build", root, "--target", "sm120", "--json")
    assert result.exit_code == 0, result.stderr
    assert re.findall(r": (\d+) of 14", result.stderr) == [str(n) for n in range(14)]
    report = json.loads(result.stdout)
    assert list(report["built"]) == list(Bundle.open(root).manifest.variant("fp32").graphs)
    assert report["predicted_peak_bytes"] == builder.predicted_peak_bytes(Bundle.open(root), "fp32")
    return root


def test_every_graph_has_a_plan_and_a_table_without_a_gap(built: Path) -> None:
    bundle = Bundle.open(built)
    variant = bundle.manifest.variant("fp32")
    assert list(variant.plans["sm120"]) == list(variant.graphs)
    for plan in variant.plans["sm120"].values():
        log = bundle.path(plan.log).read_text()
        printed = log.split("[VERBOSE] Layers:\n")[1].split("\n\n", maxsplit=1)[0]
        assert len(plan_table.parse(log).kernels) == len(printed.splitlines())
        assert str(built) not in log, "bundles travel"


def test_what_is_current_is_said_and_left_alone(built: Path) -> None:
    reasons = _json("build", built, "--dry-run")["fp32"]["sm120"]
    assert len(reasons) == len(Bundle.open(built).manifest.variant("fp32").graphs)
    assert not any(reasons.values())
    assert _json("build", built)["built"] == {}
    assert "current" in _run("build", built).stdout


def test_why_a_plan_would_be_built_is_said(built: Path) -> None:
    shown = _run("build", built, "--dry-run", "--workload", "sana-video-2b-480p")
    assert "profile: rows was 4, is 30" in shown.stdout
    assert "profile: frames was 5, is 21" in shown.stdout
    assert "never built" in _run("build", built, "--dry-run", "--target", "sm89").stdout


def test_the_report_counts_what_a_clip_needs(built: Path) -> None:
    (report,) = _json("inspect", built, "--plans")
    assert report["fits"] is True
    assert report["without_plan"] == []
    assert report["gemm_flop_shares"] == {"float32": pytest.approx(1)}
    assert report["block_kernels"][0]["seconds"] >= report["block_kernels"][-1]["seconds"] > 0
    assert len(report["graphs"]) == len(Bundle.open(built).manifest.variant("fp32").graphs)
    dynamic = {row["graph"] for row in report["graphs"] if row["not_counted"]}
    assert dynamic == {"text_encoder"}, "the length of a prompt is known at run time only"


def test_its_memory_is_no_less_than_what_the_runtime_allocates(built: Path) -> None:
    session = Session.open(built, backend="onnxruntime")
    clip = request.for_model(session.model, {"prompt": "a red circle"})
    (report,) = _json("inspect", built, "--plans")
    assert report["memory"]["buffer_bytes"] >= session.plan(clip).buffer_bytes


def test_a_smaller_card_does_not_hold_it_when_it_does_not(built: Path) -> None:
    bundle = Bundle.open(built)
    card = cards.card("rtx5090")
    small = msgspec.structs.replace(
        card, memory_bytes=plan_report.report(bundle, "fp32", "sm120", card).memory.total_bytes - 1
    )
    assert not plan_report.report(bundle, "fp32", "sm120", small).fits


def test_it_draws_what_a_block_does(built: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    for path in (first, second):
        assert _run("inspect", built, "--plot", path).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text().startswith("<?xml")
    assert "bound on time (ms), no measurement" in first.read_text()
    refused = _run("inspect", built, "--plot", tmp_path / "a.bmp")
    assert refused.exit_code == 2
    assert ".svg, .png, .pdf" in refused.stderr


def test_plots_say_what_to_install(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sana_rt.engines.plan_plot", raising=False)
    monkeypatch.delattr(sana_rt.engines, "plan_plot", raising=False)
    for name in ("matplotlib", "matplotlib.axes"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    refused = _run("inspect", built, "--plot", "a.svg")
    assert refused.exit_code == 1
    assert "sana-rt[bench]" in refused.stderr


def test_a_build_that_is_not_finished_is_said_to_be_so(built: Path) -> None:
    bundle = Bundle.open(built)
    variant = bundle.manifest.variant("fp32")
    plans = {name: plan for name, plan in variant.plans["sm120"].items() if name != "solver"}
    unfinished = msgspec.structs.replace(variant, plans={"sm120": plans})
    manifest = msgspec.structs.replace(bundle.manifest, variants={"fp32": unfinished})
    report = plan_report.report(Bundle(built, manifest), "fp32", "sm120", cards.card("rtx5090"))
    assert report.without_plan == ("solver",)


def test_reports_need_plans(small_bundle: Path) -> None:
    refused = _run("inspect", small_bundle, "--plans")
    assert refused.exit_code == 2
    assert "sana-rt build" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--flavour", "trt"), "pip install"),
        (("--workload", "nowhere"), "sana-video-2b-480p"),
        (("--variant", "nvfp4"), "no variant 'nvfp4'"),
        (("--target", "current", "--workload", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    small_bundle: Path, options: tuple[str, ...], message: str
) -> None:
    refused = _run("build", small_bundle, *options)
    assert refused.exit_code != 0
    assert message in refused.stderr
