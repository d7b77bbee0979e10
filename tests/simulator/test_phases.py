"""Phases of plans that take turns on the simulated device, and what is planned for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.simulator.simulated_cuda import Device
from tests.simulator.test_tensorrt_backend import (  # noqa: F401 (causal is a fixture)
    causal,
    clip,
    opened,
    stream,
)

from sana_rt.errors import DeviceMemoryError
from sana_rt.runtime.backends import cuda


def needed(bundle: Path, *, num_frames: int | None = None) -> int:
    """The least memory in which a clip can be made."""
    options = {} if num_frames is None else {"num_frames": num_frames}
    with opened(bundle, max_memory=1) as session:
        plan = session.plan(session.request(prompt="a red circle", **options))
    assert plan.apart == len(plan.phases) - 1
    return plan.total_bytes


def test_a_clip_keeps_to_its_budget(plans: Path, device: Device) -> None:
    """Weights and buffers are counted exactly, activations and contexts at most."""
    with opened(plans) as session:
        expected = clip(session)
        together = device.report().peak_device_bytes
    budget = needed(plans)
    device.mark()
    with opened(plans, max_memory=budget) as session:
        np.testing.assert_array_equal(clip(session), expected)
        report = device.report()
    assert report.peak_device_bytes <= budget
    assert report.peak_device_bytes < together


def test_plans_are_captured_again_for_every_chunk(causal: Path, device: Device) -> None:  # noqa: F811
    with opened(causal) as session:
        expected = stream(session)
    budget = needed(causal, num_frames=25)
    for seed in range(4):
        device.reset(seed=seed)
        with opened(causal, max_memory=budget) as session:
            np.testing.assert_array_equal(stream(session), expected)
            report = device.report()
        assert report.peak_device_bytes <= budget
        assert report.calls["cuGraphInstantiate"] > 6, "steps, commits and decodes of 3 chunks"


def test_a_card_with_little_memory_takes_turns_unasked(plans: Path, device: Device) -> None:
    with opened(plans) as session:
        expected = clip(session)
    device.reset(memory=needed(plans) + (1 << 20))
    with opened(plans) as session:
        request = session.request(prompt="a red circle")
        assert session.plan(request).apart > 0
        np.testing.assert_array_equal(clip(session), expected)


def test_a_card_with_less_refuses_with_numbers(plans: Path, device: Device) -> None:
    budget = needed(plans)
    device.reset(memory=budget - 1)
    with opened(plans) as session, pytest.raises(DeviceMemoryError, match=f"needs {budget:,} byt"):
        clip(session)


def test_staging_is_shown_and_not_counted(plans: Path) -> None:
    with opened(plans) as session:
        rows = session.plan(session.request(prompt="a red circle")).rows()
    assert list(rows)[-2:] == ["needed", "staging (pinned, on the host)"]
    summed = [sum(column) for column in zip(*(rows[name] for name in list(rows)[:-2]), strict=True)]
    assert summed == list(rows["needed"])
    assert rows["execution contexts (allowance)"][1] > 0
    assert rows["activations"][1] > 0


def test_pinned_memory_is_what_was_planned(plans: Path, device: Device) -> None:
    with opened(plans) as session:
        clip(session)
        plan = session.plan(session.request(prompt="a red circle"))
        staging = sum(plan.rows()["staging (pinned, on the host)"])
        assert device.report().pinned_bytes <= staging + cuda._PIECE
