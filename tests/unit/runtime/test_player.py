"""``sana_rt``'s public interface: what it offers, ends, refuses and leaves usable."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sana_rt
from sana_rt.errors import CanceledError, RequestError, StateError, UsageError
from sana_rt.runtime.images import write_png
from sana_rt.runtime.player import Player
from sana_rt.runtime.session import Session

PROMPT, OTHER = "a red circle moving to the right", "a blue square"
SIZE: dict[str, Any] = {"height": 32, "width": 48}
CLIP: dict[str, Any] = {**SIZE, "num_frames": 9, "num_inference_steps": 2}
NOISE = (1, 16, 3, 4, 6)
TOKENS, CHANNELS = 64, 64


@pytest.fixture
def player(small_bundle: Path) -> Iterator[Player]:
    with sana_rt.open(small_bundle, threads=1) as player:
        yield player


@pytest.fixture
def causal(causal_bundle: Path) -> Iterator[Player]:
    with sana_rt.open(str(causal_bundle), threads=1) as player:
        yield player


def clip(frames: Iterator[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.concatenate(list(frames))


def test_the_public_names_are_there_and_no_others() -> None:
    public = {"Progress", "Request", "State", "__version__", "errors", "open"}
    assert set(sana_rt.__all__) == public
    assert public <= set(dir(sana_rt))
    assert all(hasattr(sana_rt, name) for name in public)
    with pytest.raises(AttributeError, match="no attribute 'Player'"):
        sana_rt.Player  # noqa: B018


def test_a_clip_is_the_sessions(player: Player, small_bundle: Path) -> None:
    session = Session.open(small_bundle, threads=1)
    expected = clip(session.generate(session.request(prompt=PROMPT, seed=7, **CLIP)))
    assert (expected.dtype, expected.shape) == (np.uint8, (9, 32, 48, 3))
    np.testing.assert_array_equal(clip(player.generate(PROMPT, seed=7, **CLIP)), expected)


def test_frames_are_copies(player: Player) -> None:
    kept, seen = [], []
    for frames in player.generate(PROMPT, **CLIP):
        kept.append(frames)
        seen.append(frames.copy())
    np.testing.assert_array_equal(np.concatenate(kept), np.concatenate(seen))


def test_a_request_stands_for_a_prompt_and_options(player: Player) -> None:
    request = player.request(PROMPT, seed=7, **CLIP)
    assert isinstance(request, sana_rt.Request)
    assert player.request(request, seed=8) == player.request(PROMPT, seed=8, **CLIP)
    expected = clip(player.generate(PROMPT, seed=7, **CLIP))
    np.testing.assert_array_equal(clip(player.generate(request)), expected)


def test_seconds_are_frames(player: Player) -> None:
    assert player.request(PROMPT, seconds=1).num_frames == 9
    assert player.request(PROMPT, seconds=1, fps=16).num_frames == 17


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_seconds_are_above_zero(player: Player, seconds: float) -> None:
    with pytest.raises(UsageError, match="seconds, more than 0"):
        player.request(PROMPT, seconds=seconds)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "There is no prompt"),
        ({"prompt": PROMPT, "seconds": 1, "num_frames": 9}, "Both seconds and num_frames"),
        ({"prompt": PROMPT, "colour": "red"}, "colour"),
        ({"prompt": PROMPT, "seed": "7"}, "seed"),
        ({"prompt": 42}, "prompt"),
        ({"prompt": PROMPT, "seconds": "1"}, "seconds is of type str"),
    ],
)
def test_wrong_usage_is_refused(player: Player, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        player.generate(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": [(1.1, OTHER)]}, "prompts is of type list"),
        ({"prompts": {"1.1": OTHER}}, "A second of prompts is of type str"),
        ({"prompts": {1.1: 5}}, "A prompt is of type int"),
        ({"resume": "circle.state"}, "resume is of type str"),
    ],
)
def test_wrong_usage_of_a_stream_is_refused(
    causal: Player, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        causal.stream(PROMPT, seconds=2, **options)


@pytest.mark.parametrize("threads", [0, -5, 100_000, "4", 2.5])
def test_threads_are_a_number_that_a_machine_has(small_bundle: Path, threads: Any) -> None:
    with pytest.raises(UsageError, match=f"CPU threads is {threads!r}"):
        sana_rt.open(small_bundle, threads=threads)


def test_a_closed_player_plays_nothing(player: Player) -> None:
    frames = player.generate(PROMPT, **CLIP)
    player.close()
    player.close()
    player.cancel()
    with pytest.raises(UsageError, match="closed"):
        next(frames)
    with pytest.raises(UsageError, match="closed"):
        player.generate(PROMPT, **CLIP)


def test_the_plan_is_there_before_anything_is_loaded(player: Player, small_bundle: Path) -> None:
    session = Session.open(small_bundle, threads=1)
    expected = session.plan(session.request(prompt=PROMPT, **CLIP))
    assert player.plan(PROMPT, **CLIP) == expected
    assert player._session.graphs.opened == ()


def test_what_is_brought_along_may_be_arrays_or_files(player: Player, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (32, 48, 3), np.uint8)
    noise = random.standard_normal(NOISE, np.float32)
    embeds = {
        "prompt_embeds": random.standard_normal((1, TOKENS, CHANNELS), np.float32),
        "prompt_attention_mask": np.ones((1, TOKENS), np.bool_),
    }
    write_png(tmp_path / "image.png", image)
    np.save(tmp_path / "noise.npy", noise)
    np.savez(tmp_path / "embeds.npz", **embeds)
    options = CLIP | {"guidance_scale": 1.0}
    arrays = clip(player.generate(image=image, noise=noise, prompt_embeds=embeds, **options))
    files = clip(
        player.generate(
            image=tmp_path / "image.png",
            noise=str(tmp_path / "noise.npy"),
            prompt_embeds=tmp_path / "embeds.npz",
            **options,
        )
    )
    np.testing.assert_array_equal(files, arrays)
    for left_out in ("image", "noise", "prompt_embeds"):
        given = {"image": image, "noise": noise, "prompt_embeds": embeds}
        del given[left_out]
        prompt = PROMPT if left_out == "prompt_embeds" else None
        other = clip(player.generate(prompt, **given, **options))
        assert not np.array_equal(other, arrays), left_out
    with pytest.raises(RequestError, match="noise has dtype float64"):
        player.generate(PROMPT, noise=noise.astype(np.float64), **options)
    with pytest.raises(UsageError, match="A prompt and prompt_embeds are both given"):
        player.generate(PROMPT, prompt_embeds=embeds, **options)
    with pytest.raises(RequestError, match="prompt_embeds holds"):
        player.generate(prompt_embeds={}, **options)
    with pytest.raises(RequestError, match="prompt_embeds is of type ndarray"):
        player.generate(prompt_embeds=embeds["prompt_embeds"], **options)


@pytest.mark.parametrize("no", [False, np.False_])
@pytest.mark.parametrize("stage", ["encode", "load", "denoise", "decode"])
def test_a_callback_that_returns_false_cancels(player: Player, stage: str, no: Any) -> None:
    seen: list[sana_rt.Progress] = []

    def stop(progress: sana_rt.Progress) -> bool | None:
        seen.append(progress)
        return no if progress.stage == stage else None

    expected = clip(player.generate(PROMPT, **CLIP))
    with pytest.raises(CanceledError, match=stage):
        list(player.generate(PROMPT, progress=stop, **CLIP))
    assert [progress.stage for progress in seen].count(stage) == 1
    np.testing.assert_array_equal(clip(player.generate(PROMPT, **CLIP)), expected)


def test_another_thread_cancels_at_the_next_step(player: Player) -> None:
    seen: list[int] = []

    def watch(progress: sana_rt.Progress) -> None:
        if progress.stage == "denoise":
            seen.append(progress.done)
            other = threading.Thread(target=player.cancel)
            other.start()
            other.join()

    with pytest.raises(CanceledError):
        list(player.generate(PROMPT, progress=watch, **CLIP))
    assert seen == [1]
    player.cancel()  # nothing is being made
    assert len(clip(player.generate(PROMPT, **CLIP))) == 9


def test_a_clip_goes_on_after_a_refused_request_and_can_be_canceled(player: Player) -> None:
    expected = clip(player.generate(PROMPT, **CLIP))
    for cancel in (False, True):
        frames = player.generate(PROMPT, **CLIP)
        first = next(frames)
        with pytest.raises(RequestError, match="noise"):
            player.generate(OTHER, noise=np.zeros(3, np.float32), **CLIP)
        if cancel:
            player.cancel()
            with pytest.raises(CanceledError):
                next(frames)
        else:
            np.testing.assert_array_equal(np.concatenate([first, *frames]), expected)


def test_a_canceled_stream_continues_where_it_was(causal: Player, tmp_path: Path) -> None:
    options = {**SIZE, "seconds": 3, "prompts": {1.1: OTHER}, "recommit": True}
    whole = clip(causal.stream(PROMPT, **options))
    stream = causal.stream(PROMPT, **options)
    frames = [next(stream) for _ in range(4)]
    causal.cancel()
    with pytest.raises(CanceledError):
        next(stream)
    stream.state().save(str(tmp_path / "state"))
    state = sana_rt.State.load(str(tmp_path / "state"))
    rest = clip(causal.stream(resume=state, recommit=True))
    np.testing.assert_array_equal(np.concatenate([*frames, rest]), whole)
    longer = causal.stream(resume=state, seconds=4)
    assert len(np.concatenate(frames)) + len(clip(longer)) == 33


def test_prompts_over_time_may_hold_the_first(causal: Player) -> None:
    first = causal.stream(prompts={0: PROMPT, 1.1: OTHER}, seconds=2, **SIZE)
    assert [shot.prompt for shot in first.prompts] == [PROMPT, OTHER]
    request = causal.request(PROMPT, seconds=2, **SIZE)
    with pytest.raises(UsageError, match="Two prompts begin at 0 s"):
        causal.stream(request, prompts={0: OTHER})
    with pytest.raises(UsageError, match="There is no prompt"):
        causal.stream(prompts={1.1: OTHER}, seconds=2)


def test_a_state_that_holds_nan_takes_no_good_ones_place(causal: Player, tmp_path: Path) -> None:
    stream = causal.stream(PROMPT, seconds=1, **SIZE)
    next(stream)
    state = stream.state()
    state.save(tmp_path / "state")
    before = (tmp_path / "state").read_bytes()
    state.tensors["state_s"][0] = np.nan
    with pytest.raises(StateError, match="'state_s' holds NaN"):
        state.save(tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == before
