"""Frames of the native library equal those of Python bit for bit, on the same ONNX Runtime."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.native.library import Library, NativeError

import sana_rt

Frames = NDArray[np.uint8]
THREADS = 1
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
CLIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "text-to-video": ("a red circle moving slowly to the right on a grey background", {}),
    "Chinese": ("一个红色的圆形向右移动，背景是灰色。", {"seed": 2**63 + 5, "num_frames": 9}),
    "image-to-video": ("a blue square", {"image": IMAGE}),
    "fifty steps": ("a green square", {"num_inference_steps": 50, "num_frames": 5}),
    "too long": ("a red circle " * 60, {"num_frames": 5, "negative_prompt": "blue " * 90}),
    "no guidance": ("x", {"guidance_scale": 1.0, "num_frames": 5, "motion_score": 30}),
    "flow Euler": (" A CIRCLE ΣΑΣ", {"solver": "flow_euler", "num_frames": 5, "lowercase": True}),
    "another size": ("a circle", {"height": 32, "width": 96, "num_frames": 5, "flow_shift": 5.0}),
    "own noise": ("a circle", {"num_frames": 5, "noise": np.ones((1, 16, 2, 8, 8), np.float32)}),
}
PROMPTS = {20.0: "一个绿色的三角形", 40.0: "a blue square moving up"}


# A prompt that is too long is one of the cases.
pytestmark = pytest.mark.filterwarnings("ignore::sana_rt.runtime.text.PromptTruncatedWarning")


@pytest.mark.parametrize("name", CLIPS)
def test_clip(name: str, library: Library, shapes: Path) -> None:
    prompt, options = CLIPS[name]
    with sana_rt.open(shapes, threads=THREADS) as player:
        expected = np.concatenate(list(player.generate(prompt, **options)))
    session = library.open(shapes, threads=THREADS)
    assert np.array_equal(np.concatenate(list(session.start(prompt, **options))), expected)


@pytest.mark.parametrize("recommit", [False, True])
def test_minute_of_three_prompts(recommit: bool, library: Library, causal_shapes: Path) -> None:
    options = {"seconds": 60.0, "prompts": PROMPTS, "recommit": recommit}
    with sana_rt.open(causal_shapes, threads=THREADS) as player:
        expected = np.concatenate(list(player.stream("a red circle", **options)))
    clip = library.open(causal_shapes, threads=THREADS).start(
        "a red circle", stream=True, **options
    )
    assert np.array_equal(np.concatenate(list(clip)), expected)
    assert len(expected) == 481


@pytest.mark.parametrize("taken", [1, 5, 9])
def test_a_stream_begun_in_one_continues_in_the_other(
    taken: int, library: Library, causal_shapes: Path, tmp_path: Path
) -> None:
    options = {"seconds": 8.0, "prompts": {4.0: "a blue square"}, "seed": 2**64 - 1}
    python, native = tmp_path / "python.state", tmp_path / "native.state"
    session = library.open(causal_shapes, threads=THREADS)
    with sana_rt.open(causal_shapes, threads=THREADS) as player:
        whole = np.concatenate(list(player.stream("a red circle", **options)))
        stream = player.stream("a red circle", **options)
        begun = list(itertools.islice(stream, taken))
        stream.state().save(python)
        clip = session.start("a red circle", stream=True, **options)
        assert np.array_equal(
            np.concatenate(list(itertools.islice(clip, taken))), np.concatenate(begun)
        )
        clip.state().save(native)
        by_python = [*begun, *player.stream(resume=sana_rt.State.load(native))]
    by_native = [*begun, *session.start(stream=True, resume=library.load(python))]
    assert np.array_equal(np.concatenate(by_python), whole)
    assert np.array_equal(np.concatenate(by_native), whole)


def test_a_stream_continues_otherwise_than_it_was_begun(
    library: Library, causal_shapes: Path, tmp_path: Path
) -> None:
    """With another prompt, seed and solver schedule, from one state."""
    path = tmp_path / "a.state"
    options: dict[str, Any] = {"seconds": 6.0, "seed": 3, "timesteps": (1000.0, 700.0)}
    with sana_rt.open(causal_shapes, threads=THREADS) as player:
        stream = player.stream("a red circle", seconds=3.0)
        list(itertools.islice(stream, 4))
        stream.state().save(path)
        state = sana_rt.State.load(path)
        expected = np.concatenate(list(player.stream("a blue square", resume=state, **options)))
    session = library.open(causal_shapes, threads=THREADS)
    clip = session.start("a blue square", stream=True, resume=library.load(path), **options)
    assert np.array_equal(np.concatenate(list(clip)), expected)


def test_a_state_of_another_model_is_refused(
    library: Library, causal_shapes: Path, causal_bundle: Path
) -> None:
    clip = library.open(causal_shapes, threads=THREADS).start("a", stream=True, seconds=3.0)
    next(iter(clip))
    state = clip.state()
    with pytest.raises(NativeError, match="another model") as caught:
        library.open(causal_bundle, threads=THREADS).start(stream=True, resume=state)
    assert caught.value.name == "StateError"
