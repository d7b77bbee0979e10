"""The trained small models, ``shapes``, from their float32 plans: frames as on the CPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.conftest import kept
from tests.simulator.child import real_environment
from tests.simulator.extent import ALL
from tests.simulator.simulated_cuda import Device

from sana_rt.runtime.inputs import NO_INPUTS, Inputs
from sana_rt.runtime.prompt_schedule import PromptSchedule, TimedPrompt
from sana_rt.runtime.session import Session
from sana_rt.runtime.state import State

CHECKPOINTS = Path(__file__).parents[2] / "examples/shapes/checkpoints"
PROMPT, OTHER = "a red circle moving to the right", "a blue square"
#: Of the order in which the device does what CUDA leaves open.
SCHEDULES = range(1, 21 if ALL else 4)
LATER = PromptSchedule((TimedPrompt(2.0, OTHER),))
Clip = NDArray[np.uint8]
Play = Callable[[Session], Clip]


@pytest.fixture(scope="module")
def shapes(pytestconfig: pytest.Config) -> Path:
    """The bidirectional model with plans."""
    return _with_plans(pytestconfig, "shapes", _export)


@pytest.fixture(scope="module")
def causal(pytestconfig: pytest.Config) -> Path:
    """The block-causal one."""
    return _with_plans(pytestconfig, "causal-shapes", _export_causal)


def _with_plans(config: pytest.Config, name: str, export: Callable[[Path], object]) -> Path:
    def make(folder: Path) -> None:
        shutil.copytree(kept(config, name, export), folder, dirs_exist_ok=True)
        build = ["-m", "sana_rt", "build", str(folder), "--variant", "fp32", "--target", "sm120"]
        subprocess.run([sys.executable, *build], check=True, env=real_environment())

    return kept(config, f"{name}-plans", make)


def _export(folder: Path) -> None:
    from sana_rt.export.checkpoint import open_checkpoint
    from sana_rt.export.onnx_export import export_bundle

    export_bundle(open_checkpoint(CHECKPOINTS), folder)


def _export_causal(folder: Path) -> None:
    from sana_rt.export.checkpoint import Parts, open_checkpoint
    from sana_rt.export.onnx_export import export_bundle

    parts = Parts(*(CHECKPOINTS / name for name in ("vae", "text_encoder", "tokenizer")))
    model = CHECKPOINTS / "causal"
    checkpoint = open_checkpoint(
        model / "longsana.pt", preset=str(model / "model.json"), parts=parts
    )
    export_bundle(checkpoint, folder)


def played(bundle: Path, backend: str, play: Play) -> Clip:
    from tensorrt_rtx import _environment

    _environment.bundles[:] = [bundle]
    with Session.open(bundle, variant="fp32", backend=backend, threads=1) as session:
        return play(session)


def check(bundle: Path, device: Device, play: Play) -> None:
    """The same frames under every schedule."""
    expected = played(bundle, "onnxruntime", play)
    for schedule in SCHEDULES:
        device.reset(seed=schedule)
        np.testing.assert_array_equal(played(bundle, "tensorrt", play), expected)


def test_text_to_video(shapes: Path, device: Device) -> None:
    check(shapes, device, generated)


def test_image_to_video(shapes: Path, device: Device) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    check(shapes, device, lambda session: generated(session, Inputs(image=image)))


def generated(session: Session, inputs: Inputs = NO_INPUTS) -> Clip:
    request = session.request(prompt=PROMPT, seed=3, conditioned=inputs.image is not None)
    return np.concatenate(list(session.generate(request, inputs)))


def test_a_stream_whose_prompt_changes(causal: Path, device: Device) -> None:
    check(causal, device, lambda session: np.concatenate(list(started(session))))


def started(session: Session) -> Any:
    return session.stream(session.request(prompt=PROMPT, seconds=4), schedule=LATER)


@pytest.mark.parametrize("latent_frames", [2, 5])
def test_a_stream_that_is_stopped_saved_and_continued(
    causal: Path, device: Device, tmp_path: Path, latent_frames: int
) -> None:
    def stopped(session: Session) -> Clip:
        stream = started(session)
        frames = [next(stream) for _ in range(latent_frames)]
        stream.close()
        stream.state().save(tmp_path / "state")
        return np.concatenate(frames)

    def continued(session: Session) -> Clip:
        state = State.load(tmp_path / "state")
        return np.concatenate(list(session.stream(session.request(resume=state), resume=state)))

    whole = played(causal, "onnxruntime", lambda session: np.concatenate(list(started(session))))
    for schedule in SCHEDULES:
        device.reset(seed=schedule)
        parts = [played(causal, "tensorrt", play) for play in (stopped, continued)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
