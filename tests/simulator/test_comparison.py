"""Plans against the CPU on the simulated device: one that was miscompiled is found and named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sana_rt.bundle import Bundle
from sana_rt.cli import cli, import_check
from sana_rt.runtime.backends.survey import offers


def verify(bundle: Path) -> Result:
    return CliRunner().invoke(cli, ["verify", str(bundle), "--backend", "tensorrt"])


def test_plans_that_are_right_pass(plans: Path) -> None:
    result = verify(plans)
    assert result.exit_code == 0, result.output
    assert result.stdout.count(" ok ") == 14 + 1, "the text encoder at its smallest size, too"
    assert "FAILED" not in result.stdout


def test_a_plan_that_was_miscompiled_is_named(plan_bundle: Path, tmp_path: Path) -> None:
    """Behind the plan of block 2 is what was to be block 1."""
    from tensorrt_rtx import _environment

    wrong = shutil.copytree(plan_bundle, tmp_path / "wrong")
    graphs = Bundle.open(plan_bundle).manifest.variant("fp32").graphs
    (weights,), (others,) = graphs["block_02"].weights, graphs["block_01"].weights
    shutil.copyfile(plan_bundle / others, wrong / weights)
    _environment.bundles.append(wrong)
    result = verify(plan_bundle)
    assert result.exit_code == 1
    assert "1 of 15 comparisons with the CPU failed: fp32/block_02 differs in" in result.stderr
    assert "build its plans again" in result.stderr


def test_plans_that_would_not_run_are_refused_by_their_header(
    plans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_check, "broken", lambda *_, **__: {})  # which takes ten seconds
    from tensorrt_rtx import EngineInvalidityDiagnostics, _environment

    bundle = Bundle.open(plans)
    assert offers("tensorrt", bundle).playable == ("fp32",)
    _environment.refusals.add(EngineInvalidityDiagnostics.OLD_CUDA_DRIVER)
    found = offers("tensorrt", bundle)
    assert found.playable == ()
    assert "needs a newer driver than this one" in found.refusals["fp32"]
    result = CliRunner().invoke(cli, ["doctor", str(plans)])
    assert "needs a newer driver" in " ".join(result.stdout.split())
    assert _environment.compiled == [], "nothing was loaded"
