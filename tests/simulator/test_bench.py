"""A turn of the benchmark on plans: by the card's events, and of the card's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.simulator.simulated_cuda import Device

from sana_rt.benchmarks.speed import session_turn
from sana_rt.benchmarks.speed.turn import SessionJob
from sana_rt.bundle import Bundle
from sana_rt.runtime.request import for_model


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


def test_what_would_play_it(job: dict[str, Any], device: Device) -> None:
    assert session_turn.probe(job) == "cuda"
