"""Plans on the simulated device: frames are those of the backend ``onnxruntime``, bit for bit."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.simulator.simulated_cuda import Device, Report

from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.errors import DeviceLostError, DeviceMemoryError, ProfileError, UsageError
from sana_rt.manifest import DimRange, Plan, Variant
from sana_rt.model_spec import StreamingSpec
from sana_rt.runtime.backends.cuda_graph import NotCapturedWarning
from sana_rt.runtime.inputs import Inputs
from sana_rt.runtime.prompt_schedule import PromptSchedule, TimedPrompt
from sana_rt.runtime.session import Session
from sana_rt.runtime.state import State

Clip = NDArray[np.uint8]
PROMPT, OTHER = "a red circle moving to the right", "a blue square"
STEPS = 4
SEEDS = range(1, 21)


def opened(bundle: Path, backend: str = "tensorrt", **options: Any) -> Session:
    return Session.open(bundle, variant="fp32", backend=backend, threads=1, **options)


def clip(session: Session, inputs: Inputs | None = None, **options: Any) -> Clip:
    image = inputs is not None and inputs.image is not None
    given = {"prompt": PROMPT, "num_inference_steps": STEPS} | options
    request = session.request(conditioned=image, **given)
    return np.concatenate(list(session.generate(request, *([inputs] if inputs else []))))


def played(bundle: Path, inputs: Inputs | None = None, **options: Any) -> Clip:
    with opened(bundle, **options) as session:
        return clip(session, inputs)


@pytest.fixture(scope="session")
def expected(plan_bundle: Path) -> Clip:
    with opened(plan_bundle, "onnxruntime") as session:
        return clip(session)


def changed(plan_bundle: Path, root: Path, **fields: Any) -> Path:
    """A bundle with the same files and other facts about its plans."""

    def change(variant: Variant) -> Variant:
        replace = msgspec.structs.replace
        plans = {
            target: {name: replace(plan, **fields) for name, plan in each.items()}
            for target, each in variant.plans.items()
        }
        return replace(variant, plans=plans)

    return rewritten(plan_bundle, root, change)


def rewritten(plan_bundle: Path, root: Path, change: Any, model: Any = None) -> Path:
    from tensorrt_rtx import _environment

    manifest = Bundle.open(plan_bundle).manifest
    for file in manifest.files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).hardlink_to(plan_bundle / file.path)
    variants = {name: change(each) for name, each in manifest.variants.items()}
    after = msgspec.structs.replace(manifest, variants=variants, model=model or manifest.model)
    _environment.bundles[:] = [bundles.save(root, after).root]
    return root


@pytest.fixture
def causal(plan_bundle: Path, tmp_path: Path) -> Path:
    """The small bundle declared block-causal, in chunks of two latent frames, with its plans."""
    replace = msgspec.structs.replace
    model = Bundle.open(plan_bundle).manifest.model
    sampling = replace(
        model.sampling, solver="renoise", num_inference_steps=2, guidance_scale=1.0, height=32,
        width=32,
    )  # fmt: skip
    causal = replace(
        model,
        transformer=replace(model.transformer, causal=True),
        sampling=sampling,
        streaming=StreamingSpec(chunk_frames=2),
    )

    def any_size(variant: Variant) -> Variant:
        plans = {
            target: {name: replace(plan, profile=spans(plan)) for name, plan in each.items()}
            for target, each in variant.plans.items()
        }
        return replace(variant, plans=plans)

    def spans(plan: Plan) -> dict[str, DimRange]:
        return {name: DimRange(1, span.max, span.max) for name, span in plan.profile.items()}

    return rewritten(plan_bundle, tmp_path / "causal", any_size, causal)


# --- The same frames ---


@pytest.mark.parametrize("seed", SEEDS)
def test_text_to_video(plans: Path, expected: Clip, device: Device, seed: int) -> None:
    device.reset(seed=seed)
    np.testing.assert_array_equal(played(plans), expected)


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_image_to_video(plans: Path, device: Device, seed: int) -> None:
    device.reset(seed=seed)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    inputs = Inputs(image=image)
    with opened(plans, "onnxruntime") as session:
        expected = clip(session, inputs)
    np.testing.assert_array_equal(played(plans, inputs), expected)


@pytest.mark.parametrize("options", [{"cuda_graph": False}, {"max_memory": "100MB"}])
def test_whatever_the_options(plans: Path, expected: Clip, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(played(plans, **options), expected)


def test_clip_after_clip_in_one_session(plans: Path, expected: Clip) -> None:
    with opened(plans) as session:
        first, other, last = (clip(session, prompt=text) for text in (PROMPT, OTHER, PROMPT))
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(last, expected)
    assert not np.array_equal(other, expected)


def test_observed_graph_by_graph(plans: Path, expected: Clip) -> None:
    with opened(plans) as session:
        request = session.request(prompt=PROMPT, num_inference_steps=STEPS)
        frames = session.generate(request, check_finite=True)
        np.testing.assert_array_equal(np.concatenate(list(frames)), expected)


def stream(session: Session, **options: Any) -> Clip:
    schedule = PromptSchedule((TimedPrompt(1.5, OTHER),))
    request = session.request(prompt=PROMPT, num_frames=25)
    return np.concatenate(list(session.stream(request, schedule=schedule, **options)))


@pytest.mark.parametrize("seed", SEEDS[:5])
def test_streams_with_prompts_over_time(causal: Path, device: Device, seed: int) -> None:
    """Chunks of three, two and two latent frames: graphs of two lengths."""
    device.reset(seed=seed)
    with opened(causal, "onnxruntime") as session:
        expected = stream(session)
    with opened(causal) as session:
        np.testing.assert_array_equal(stream(session), expected)


@pytest.mark.parametrize("latent_frames", [1, 3, 4])
def test_streams_stop_and_continue(causal: Path, tmp_path: Path, latent_frames: int) -> None:
    """In another session, from a file."""
    schedule = PromptSchedule((TimedPrompt(1.5, OTHER),))
    with opened(causal, "onnxruntime") as session:
        expected = stream(session)
    with opened(causal) as session:
        request = session.request(prompt=PROMPT, num_frames=25)
        stopped = session.stream(request, schedule=schedule)
        beginning = [next(stopped) for _ in range(latent_frames)]
        stopped.close()
        stopped.state().save(tmp_path / "state")
    state = State.load(tmp_path / "state")
    with opened(causal) as session:
        end = list(session.stream(session.request(resume=state), resume=state))
    np.testing.assert_array_equal(np.concatenate([*beginning, *end]), expected)


# --- What the device is asked to do ---

WORK = {"cuGraphLaunch", "cuMemcpyAsync", "cuMemsetD8Async", "cuLaunchKernel"}


def work(report: Report) -> dict[str, int]:
    calls = {name.removesuffix("_v2"): count for name, count in report.calls.items()}
    return {name: count for name, count in calls.items() if name in WORK and count}


def test_a_step_is_one_launch_and_two_copies(plans: Path, device: Device) -> None:
    """Timesteps and coefficients; this solver takes no noise. Nothing waits for the device."""
    steps: list[Report] = []

    def look(progress: Any) -> None:
        if progress.stage == "denoise":
            steps.append(device.report())
            device.mark()

    with opened(plans) as session:
        request = session.request(prompt=PROMPT, num_inference_steps=8)
        for _ in session.generate(request, progress=look):
            pass
    assert len(steps) == 8
    for report in steps[2:]:
        assert work(report) == {"cuGraphLaunch": 1, "cuMemcpyAsync": 2}
        assert not [kind for kind in report.bytes if "pageable" in kind]
        assert report.allocations == 0


def test_a_step_that_takes_noise_copies_three_times(causal: Path, device: Device) -> None:
    """And after the first chunk of each length, nothing is allocated and nothing captured."""
    with opened(causal) as session:
        request = session.request(prompt=PROMPT, num_frames=57, num_inference_steps=4)
        reports: list[Report] = []

        def look(progress: Any) -> None:
            if progress.stage == "denoise":
                reports.append(device.report())
                device.mark()

        made = session.stream(request, progress=look)
        for _ in range(9):
            next(made)
        reports.clear()
        device.mark()
        for _ in made:
            pass
        left = device.report()
    steps = [work(report) for report in reports]
    assert {"cuGraphLaunch": 1, "cuMemcpyAsync": 3} in steps
    assert all(each["cuGraphLaunch"] <= 3 for each in steps)
    for report in (*reports, left):
        assert report.allocations == 0
        assert not {name for name in report.calls if "Capture" in name or "Instantiate" in name}


def test_live_bytes_are_flat_over_five_minutes(causal: Path, device: Device) -> None:
    live: list[tuple[int, int, int]] = []
    with opened(causal) as session:
        seconds = 300
        request = session.request(prompt=PROMPT, seconds=seconds, fps=2)
        for number, _ in enumerate(session.stream(request)):
            if number > 8:  # the chunks so far were of every kind
                report = device.report()
                live.append((report.device_bytes, report.pinned_bytes, report.executable_graphs))
    assert len(live) > 130
    assert len(set(live)) == 1


def test_a_plan_that_allocates_is_not_captured(plan_bundle: Path, tmp_path: Path) -> None:
    bundle = changed(plan_bundle, tmp_path / "bundle", user_allocation=False)
    with opened(bundle, "onnxruntime") as session:
        expected = clip(session)
    with pytest.warns(NotCapturedWarning, match="the plan of rope allocates memory") as caught:
        np.testing.assert_array_equal(played(bundle), expected)
    assert len(caught) == 1


def test_a_capture_that_fails_costs_a_note(plans: Path, expected: Clip, device: Device) -> None:
    with opened(plans) as session:
        device.fail("cuStreamEndCapture", result=901)
        with pytest.warns(NotCapturedWarning, match="cuStreamEndCapture"):
            np.testing.assert_array_equal(clip(session), expected)


def test_graphs_are_captured_again_where_the_arena_moves(causal: Path) -> None:
    """Which it does not if all is bound when it is loaded; so it is moved by hand."""
    with opened(causal, "onnxruntime") as session:
        expected = stream(session)
    with opened(causal) as session:
        arena = session.graphs._backend._arena  # type: ignore[attr-defined]
        made = session.stream(
            session.request(prompt=PROMPT, num_frames=25),
            schedule=PromptSchedule((TimedPrompt(1.5, OTHER),)),
        )
        frames = []
        for part in made:
            frames.append(part)
            arena.resize(arena.nbytes + 4096)
        np.testing.assert_array_equal(np.concatenate(frames), expected)


# --- What goes wrong ---


def test_a_stuck_device_is_given_up(plans: Path, device: Device) -> None:
    with opened(plans, timeout=0.3) as session:
        request = session.request(prompt=PROMPT, num_inference_steps=8)
        frames = session.generate(request, progress=lambda at: hang(at, device))
        with pytest.raises(DeviceLostError, match=r"did not answer for 0\.3 .*step [34] of 8"):
            next(frames)
        with pytest.raises(DeviceLostError, match="restart the process"):
            clip(session)
    device.reset()  # what is on a lost device stays there


def hang(progress: Any, device: Device) -> None:
    if (progress.stage, progress.done) == ("denoise", 3):
        device.hang(patience=30)


def test_an_error_of_the_device_is_told_once_and_for_all(plans: Path, device: Device) -> None:
    def fail(progress: Any) -> None:
        if (progress.stage, progress.done) == ("denoise", 3):
            device.fail_work()

    with opened(plans) as session:
        request = session.request(prompt=PROMPT, num_inference_steps=8)
        with pytest.raises(DeviceLostError, match=r"ILLEGAL_ADDRESS in timestep to solver \(step"):
            next(session.generate(request, progress=fail))
        with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
            clip(session)
    gc.collect()


@pytest.mark.parametrize("nth", [1, 10, 30, 60])
def test_out_of_memory_leaves_the_session_usable(
    plans: Path, expected: Clip, device: Device, nth: int
) -> None:
    with opened(plans) as session:
        device.fail("allocation", nth)
        with pytest.raises(DeviceMemoryError, match=r"did not allocate .* bytes of the GPU are"):
            clip(session)
        np.testing.assert_array_equal(clip(session), expected)


def test_sizes_outside_of_the_profile_are_refused_at_once(plans: Path, device: Device) -> None:
    with opened(plans) as session:
        device.mark()
        with pytest.raises(ProfileError, match=r"frames 3.*\n.*frames 5.*\n.*--workload"):
            clip(session, num_frames=9)
        assert device.report().allocations == 0


def test_a_timeout_is_a_number_of_seconds(plans: Path) -> None:
    for timeout in (0, -1, "1", float("nan")):
        with pytest.raises(UsageError, match="timeout"):
            opened(plans, timeout=timeout)
