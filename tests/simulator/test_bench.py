"""A turn of the benchmark on plans: by the card's events, and of the card's memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner
from tests.simulator.simulated_cuda import Device

from sana_rt import bundle as bundles
from sana_rt.benchmarks.speed import bounds, kernels, session_turn
from sana_rt.benchmarks.speed import report as reports
from sana_rt.benchmarks.speed.bounds import BoundCard
from sana_rt.benchmarks.speed.kernels import KernelShares
from sana_rt.benchmarks.speed.turn import SessionJob, TurnCard
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.engines import plan_table
from sana_rt.runtime.request import for_model

#: What a process finds that asks for no other device.
SIMULATED = TurnCard("Simulated device (compute capability 12.0)", "12.0")


@pytest.fixture
def job(plans: Path) -> dict[str, Any]:
    model = Bundle.open(plans).manifest.model
    request = for_model(model, {"prompt": "a red circle", "num_inference_steps": 3})
    job = SessionJob(str(plans), "fp32", "tensorrt", 1, (request,))
    built: dict[str, Any] = msgspec.to_builtins(job)
    return built


def test_plans_are_played_warmed_up_and_timed(job: dict[str, Any], device: Device) -> None:
    passes: list[tuple[int, int]] = []
    turn = session_turn.turn(job, lambda done, total: passes.append((done, total)))
    assert (turn.device, turn.backend, turn.plans) == ("cuda", "tensorrt", True)
    assert passes[-1] == (5, 5), "two passes to warm up, then three"
    assert (turn.work.passes, turn.work.decoded) == (3, 17)
    seconds = {name: values[0] for name, values in turn.seconds.items()}
    assert len(turn.seconds["step"]) == 2
    assert 0 < seconds["step"] < seconds["denoise"] < seconds["clip"]
    assert 0 < seconds["compile"] < seconds["load"]
    assert turn.device_bytes is not None
    assert turn.device_bytes > 1 << 20


def test_graphs_are_timed_one_by_one(job: dict[str, Any], device: Device) -> None:
    times = {each.graph: each for each in session_turn.profile(job, lambda *_: None)}
    assert times["block_00"].runs == times["solver"].runs == 3
    assert times["text_encoder"].runs == 2
    assert all(each.seconds > 0 for each in times.values())


def joined(job: dict[str, Any], plans: Path, card: TurnCard) -> dict[str, KernelShares]:
    bundle = Bundle.open(plans)
    limits = bounds.limits(bundle.manifest.variant("fp32"), plans=True, played=card)
    assert limits is not None
    told = session_turn.kernels(job, lambda *_: None)
    return {each.graph: kernels.joined(bundle, limits, each) for each in told}


def test_kernels_are_timed_beside_their_bounds(
    job: dict[str, Any], plans: Path, device: Device
) -> None:
    """The simulated device's times are invented, so that what is joined with them is known."""
    found = joined(job, plans, TurnCard("NVIDIA GeForce RTX 5090", "12.0"))
    assert (found["block_00"].runs, found["text_encoder"].runs) == (2, 2)
    variant = Bundle.open(plans).manifest.variant("fp32")
    for graph, each in found.items():
        table = plan_table.read(plans / variant.plans["sm120"][graph].log)
        assert [one.name for one in each.kernels] == [row.name for row in table.kernels]
        assert each.unlisted == each.untimed == ()
        for index, one in enumerate(each.kernels):
            assert one.seconds == pytest.approx((1 + index) / 1024 / 1e3)
            if one.bound_seconds:
                assert one.reached == one.bound_seconds / one.seconds
    assert any(one.bound_seconds for one in found["block_00"].kernels)


def test_kernels_by_other_names_have_no_bound(
    job: dict[str, Any], plans: Path, device: Device
) -> None:
    from tensorrt_rtx import _environment

    plan = Bundle.open(plans).manifest.variant("fp32").plans["sm120"]["solver"]
    rows = [row.name for row in plan_table.read(plans / plan.log).kernels]
    _environment.renamed.update(dict.fromkeys(rows, "layer"))
    found = joined(job, plans, TurnCard("Simulated card", "12.0"))["solver"]
    assert [each.name for each in found.unlisted] == ["layer"], "one name of all, which adds up"
    assert found.unlisted[0].seconds == pytest.approx(sum(range(1, len(rows) + 1)) / 1024 / 1e3)
    assert found.kernels == ()
    assert set(found.untimed) <= set(rows)
    assert found.untimed


def test_the_command_measures_two_variants(
    plan_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes that have a device each; this one has none, and its card no manager."""
    root = tmp_path / "bundle"
    shutil.copytree(plan_bundle, root)
    manifest = Bundle.open(root).manifest
    bundles.save(root, manifest.with_variants({"twin": manifest.variant("fp32")}))
    monkeypatch.setenv("SIMULATED_BUNDLES", str(root))
    output = tmp_path / "report"
    words = ["bench", str(root), "-o", str(output), "--backend", "tensorrt", "--threads", "1"]
    words += ["--variants", "fp32,twin", "--baseline", "fp32", "--quick", "--repeats", "1"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    jsonschema.validate(json.loads((output / "report.json").read_text()), reports.schema())
    report = reports.read(output / "report.json")
    assert [side.name for side in report.sides] == ["fp32", "twin"]
    assert (report.card, report.not_measured) == (None, {})
    for side in report.sides:
        assert (side.backend, side.device, side.readings) == ("tensorrt", "cuda", None)
        assert side.latents_difference == 0
        assert side.card == SIMULATED
        assert side.bound == BoundCard("GeForce RTX 5090", "sm120", measured=False)
        assert {each.graph for each in side.kernels} == {each.time.graph for each in side.graphs}
        assert any(one.bound_seconds for each in side.kernels for one in each.kernels)
        assert {one.reached for each in side.kernels for one in each.kernels} == {None}
    page = " ".join((output / "index.html").read_text().split())
    assert f"rounds; on {SIMULATED.name}." in page
    assert f"kernels, on {SIMULATED.name};" in page
    assert "bound, not measured" in page
    assert f"Clocks, power and temperature of a card are not available: {report.no_card}" in page
    assert report.no_card


def test_what_would_play_it(job: dict[str, Any], device: Device) -> None:
    assert session_turn.probe(job) == "cuda"
