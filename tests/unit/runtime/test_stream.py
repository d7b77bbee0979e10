"""Streams: stopping anywhere, continuing exactly, prompts over time, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from sana_rt.errors import DiskFullError, RequestError, StateError, StorageError, UsageError
from sana_rt.runtime import pipeline as pipelines
from sana_rt.runtime.backends.buffers import Memory
from sana_rt.runtime.carried_state import NAMES
from sana_rt.runtime.inputs import Inputs
from sana_rt.runtime.pipeline import Progress
from sana_rt.runtime.prompt_schedule import PromptSchedule, ScheduledPrompt, TimedPrompt, placed
from sana_rt.runtime.session import Session
from sana_rt.runtime.state import State

PROMPT, OTHER = "a red circle moving to the right", "a blue square"
LATENT_FRAMES = 7  # in chunks of 3, 2 and 2
Clip = NDArray[np.uint8]


@pytest.fixture
def session(causal_bundle: Path) -> Session:
    return Session.open(causal_bundle, threads=1)


def small(session: Session, **options: Any) -> Any:
    given = {"prompt": PROMPT, "height": 32, "width": 48, "num_frames": 4 * LATENT_FRAMES - 3}
    return session.request(**given | options)


def play(session: Session, request: Any, **options: Any) -> Clip:
    return np.concatenate(list(session.stream(request, **options)))


def stopped(session: Session, latent_frames: int, **options: Any) -> tuple[Clip, State]:
    """The frames of the first latent frames, and what continues them."""
    stream = session.stream(small(session), **options)
    frames = np.concatenate([next(stream) for _ in range(latent_frames)])
    stream.close()
    return frames, stream.state()


def test_a_stream_is_the_clip_that_generate_makes(session: Session) -> None:
    clip = np.concatenate(list(session.generate(small(session))))
    np.testing.assert_array_equal(play(session, small(session)), clip)


@pytest.mark.parametrize("latent_frames", range(1, LATENT_FRAMES))
def test_stopped_anywhere_saved_and_continued_is_never_stopped(
    session: Session, causal_bundle: Path, tmp_path: Path, latent_frames: int
) -> None:
    """In another session, bit for bit: in the middle of a chunk and between two."""
    schedule = PromptSchedule((TimedPrompt(2.0, OTHER),))
    whole = play(session, small(session), schedule=schedule)
    beginning, state = stopped(session, latent_frames, schedule=schedule)
    state.save(tmp_path / "state")
    other = Session.open(causal_bundle, threads=1)
    loaded = State.load(tmp_path / "state")
    end = play(other, other.request(resume=loaded), resume=loaded)
    np.testing.assert_array_equal(np.concatenate([beginning, end]), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_finished_stream_goes_on_as_a_longer_one(session: Session) -> None:
    long = small(session, num_frames=41)  # 11 latent frames: the first chunk has 3 of both
    whole = play(session, long)
    beginning, state = stopped(session, LATENT_FRAMES)
    end = play(session, session.request(resume=state, num_frames=41), resume=state)
    np.testing.assert_array_equal(np.concatenate([beginning, end]), whole)


def test_one_state_has_many_continuations(session: Session) -> None:
    _, state = stopped(session, 5)
    plain, other, seeded = (
        play(session, session.request(resume=state, **change), resume=state)
        for change in ({}, {"prompt": OTHER}, {"seed": 1})
    )
    again = play(session, session.request(resume=state), resume=state)
    np.testing.assert_array_equal(again, plain)
    assert not np.array_equal(other, plain)
    assert not np.array_equal(seeded, plain)
    assert not np.array_equal(seeded, other)


def test_guidance_is_carried_too(session: Session) -> None:
    request = small(session, guidance_scale=3.0)
    whole = play(session, request)
    stream = session.stream(request)
    beginning = [next(stream) for _ in range(4)]
    state = stream.state()
    assert state.tensors["state_s"].shape[1] == 2
    end = play(session, session.request(resume=state), resume=state)
    np.testing.assert_array_equal(np.concatenate([*beginning, end]), whole)


def test_a_stream_in_use_can_be_saved_without_a_trace(session: Session) -> None:
    stream = session.stream(small(session))
    frames = []
    for part in stream:
        stream.state()
        frames.append(part)
    np.testing.assert_array_equal(np.concatenate(frames), play(session, small(session)))


def test_the_text_encoder_runs_for_new_prompts_only(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keys and values are computed once for each time that a prompt begins."""
    encoded: list[str] = []
    projected: list[object] = []
    encode, project = pipelines.prompts.encode, pipelines.prompts.project

    def spy_encode(*arguments: Any) -> Any:
        encoded.extend(arguments[-1])
        return encode(*arguments)

    def spy_project(*arguments: Any) -> None:
        projected.append(arguments[-1])
        project(*arguments)

    monkeypatch.setattr(pipelines.prompts, "encode", spy_encode)
    monkeypatch.setattr(pipelines.prompts, "project", spy_project)
    schedule = PromptSchedule((TimedPrompt(1.2, OTHER), TimedPrompt(2.1, PROMPT)))
    stream = session.stream(small(session), schedule=schedule)
    assert [shot.frame for shot in stream.prompts] == [0, 3, 5]
    list(stream)
    assert (encoded, len(projected)) == ([PROMPT, OTHER], 3)
    state = stream.state()
    play(session, session.request(resume=state, num_frames=33), resume=state)
    assert (len(encoded), len(projected)) == (2, 4), "the state knows its prompt"


def test_prompts_begin_at_the_nearest_chunk(session: Session) -> None:
    chunks = (range(3), range(3, 5), range(5, 7))  # begin at 0, 9 / 8 and 17 / 8 s
    first = ScheduledPrompt(0, PROMPT)
    for seconds, frame in ((0.6, 3), (1.6, 3), (1.63, 5), (3.0, 5)):
        (_, shot) = placed(first, (TimedPrompt(seconds, OTHER),), chunks, 8, session.model)
        assert shot == ScheduledPrompt(frame, OTHER)
        assert shot.seconds(8, session.model) == {3: 9 / 8, 5: 17 / 8}[frame]


def test_a_new_prompt_changes_its_chunks_and_no_frame_before(session: Session) -> None:
    plain = play(session, small(session))
    changed = play(session, small(session), schedule=PromptSchedule((TimedPrompt(1.1, OTHER),)))
    committed = play(
        session, small(session), schedule=PromptSchedule((TimedPrompt(1.1, OTHER),), recommit=True)
    )
    np.testing.assert_array_equal(changed[:9], plain[:9])
    np.testing.assert_array_equal(committed[:9], plain[:9])
    assert not np.array_equal(changed[9:], plain[9:])
    assert not np.array_equal(committed[9:], changed[9:])


def test_bytes_of_the_state_are_the_manifests(session: Session) -> None:
    """Of every block: S and the key sums in float32, and one frame of z."""
    _, state = stopped(session, 3)
    spec = session.model.transformer
    heads, d = spec.num_heads, spec.head_dim
    expected = spec.num_layers * 4 * (heads * d * d + heads * d + 2 * 3 * spec.width)
    assert sum(state.tensors[name].nbytes for name in NAMES) == expected
    plan = session.plan(small(session))
    carried = [one for one in plan.regions if one.name.split(".")[0] in NAMES]
    assert plan.size_of(tuple(carried)) == expected


def test_nothing_is_allocated_after_the_first_chunk(session: Session) -> None:
    """Not by prompts that change, not by saving, not by continuing."""
    memory: Memory = session.graphs.memory
    stream = session.stream(small(session), schedule=PromptSchedule((TimedPrompt(1.1, OTHER),)))
    next(stream)
    before = memory.allocations
    list(stream)
    stream.state()
    assert memory.allocations == before
    minute, longest = (small(session, num_frames=4 * frames - 3) for frames in (61, 1023))
    assert session.plan(minute) == session.plan(longest), "memory does not grow with the clip"


@pytest.mark.parametrize("passes", [1, 4, 5, 6, 14])
def test_a_callback_that_raises_leaves_a_whole_state(session: Session, passes: int) -> None:
    """After a step, a chunk, a commit, the last pass: its error comes through, nothing is lost."""

    class OursError(Exception):
        pass

    def fail(progress: Progress) -> None:
        if (progress.stage, progress.done) == ("denoise", passes):
            raise OursError

    whole = play(session, small(session))
    stream = session.stream(small(session), progress=fail)
    frames = []
    with pytest.raises(OursError):
        frames.extend(stream)
    state = stream.state()
    end = play(session, session.request(resume=state), resume=state)
    np.testing.assert_array_equal(np.concatenate([*frames, end]), whole)


def test_a_commit_that_fails_leaves_no_state_to_save(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = session.stream(small(session))
    for _ in range(3):
        next(stream)
    copy, copies = Memory.copy, []

    def fail(memory: Memory, *buffers: Any) -> None:
        copies.append(buffers)
        if len(copies) == 2:
            raise KeyboardInterrupt
        copy(memory, *buffers)

    monkeypatch.setattr(Memory, "copy", fail)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    with pytest.raises(StateError, match="a commit was interrupted"):
        stream.state()


def test_there_is_no_state_before_the_first_frame_or_of_another_clip(session: Session) -> None:
    stream = session.stream(small(session))
    with pytest.raises(StateError, match="nothing was generated yet"):
        stream.state()
    next(stream)
    session.stream(small(session))
    with pytest.raises(UsageError, match="Another clip"):
        stream.state()


def test_a_stream_that_another_replaced_does_not_touch_it(session: Session) -> None:
    """They share buffers; the first one is begun when the second has a state."""
    whole = play(session, small(session))
    first, second = session.stream(small(session, seed=1)), session.stream(small(session))
    frames = [next(second) for _ in range(4)]
    with pytest.raises(UsageError, match="Another clip"):
        next(first)
    np.testing.assert_array_equal(np.concatenate([*frames, *second]), whole)


@pytest.mark.parametrize(
    ("options", "schedule", "words"),
    [
        ({"num_frames": 4097}, (), "1,025 latent frames.*at most 1,024.*4,093 frames, 511.6 s"),
        ({}, ((4.0, OTHER),), "prompt begins at 4 s.*0 s to 3.125 s"),
        ({}, ((0.2, OTHER),), r"prompt at 0.2 s.*same chunk.*0, 1.125, 2.125 s"),
        ({}, ((1.2, OTHER), (1.3, PROMPT)), r"prompt at 1.3 s.*same chunk"),
        ({"timesteps": (500, 900)}, (), "timesteps are 500, 900.*descending values"),
        ({"timesteps": (900, 500), "num_inference_steps": 3}, (), "is 3.*2, the timesteps given"),
        ({"timesteps": (900,), "solver": "flow_euler"}, (), "given for the solver 'flow_euler'"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_before_it_begins(
    session: Session, options: dict[str, Any], schedule: tuple[Any, ...], words: str
) -> None:
    scenes = tuple(TimedPrompt(*scene) for scene in schedule)
    with pytest.raises(RequestError, match=f"(?s){words}"):
        session.stream(small(session, **options), schedule=PromptSchedule(scenes))
    assert session.graphs.opened == ()


@pytest.mark.parametrize("timesteps", [(1000,), (1000, 750.5, 20)])
def test_any_falling_list_of_timesteps_is_taken(
    session: Session, timesteps: tuple[float, ...]
) -> None:
    seen: list[Progress] = []
    request = small(session, timesteps=timesteps, num_frames=9)
    assert request.num_inference_steps == len(timesteps)
    assert len(play(session, request, progress=seen.append)) == 9
    passes = [progress.total for progress in seen if progress.stage == "denoise"]
    assert passes[-1] == len(passes) == len(timesteps)


def test_a_bidirectional_model_is_not_streamed(small_bundle: Path) -> None:
    """It holds the whole clip, so memory would grow with its length."""
    session = Session.open(small_bundle, threads=1)
    with pytest.raises(RequestError, match=r"in one piece[^$]*sana-rt generate"):
        session.stream(small(session, num_frames=9, num_inference_steps=2))


def test_states_of_something_else_are_refused(session: Session) -> None:
    _, state = stopped(session, 3)
    replace = msgspec.structs.replace

    def with_header(**fields: Any) -> State:
        return State(replace(state.header, **fields), state.tensors)

    identity = state.header.identity
    request = session.request(resume=state)
    for other, words in (
        (with_header(identity=replace(identity, graphs="0" * 64)), "another model.*0{12}"),
        (with_header(identity=replace(identity, variant="nvfp4")), "another model.*nvfp4"),
        (State(state.header, {**state.tensors, "state_k": np.zeros(3)}), "'state_k'.*float64"),
        (State(state.header, {"latents": state.tensors["latents"]}), "kind of 'attention_mask'"),
    ):
        with pytest.raises(StateError, match=f"(?s){words}"):
            session.stream(request, resume=other)
    for options in ({"height": 48}, {"fps": 9}, {"guidance_scale": 2.0}):
        with pytest.raises(StateError, match=r"another frame size, rate or batch: 32 by 48 pix"):
            session.stream(session.request(resume=state, **options), resume=state)
    for num_frames, words in (
        (5, "The stream already has 1.125 s .3 latent frames"),
        (9, "longer"),
    ):
        short = session.request(resume=state, num_frames=num_frames)
        with pytest.raises(RequestError, match=f"(?s){words}"):
            session.stream(short, resume=state)
    image = Inputs(image=np.zeros((32, 48, 3), np.uint8))
    with pytest.raises(RequestError, match="a stream to resume"):
        session.stream(request, image, resume=state)


def test_damaged_files_are_refused(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "state"
    _, state = stopped(session, 1)
    state.save(path)
    whole = path.read_bytes()
    assert State.load(path).header == state.header
    random = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(damaged[: random.integers(len(whole))])
        with pytest.raises(StateError, match="not a readable stream state"):
            State.load(path)
    header = msgspec.json.encode(state.header)
    older = header.replace(b'"format_version":2', b'"format_version":1')
    odd = header.replace(b'"decoded":1', b'"decoded":9')
    assert header not in (older, odd)
    headers = [np.frombuffer(data, np.uint8) for data in (older, odd, b"{")]
    for header_array in (np.zeros(3), *headers):
        with path.open("wb") as file:
            np.savez(file, header=header_array)
        with pytest.raises(StateError, match="not a readable stream state"):
            State.load(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(StateError, match="not a readable stream state"):
        State.load(tmp_path / "one.npy")
    with pytest.raises(StorageError, match="none"):
        State.load(tmp_path / "none")


def test_a_full_disk_keeps_the_state_of_before(
    session: Session, tmp_path: Path, fill_disk: Callable[[Path], None]
) -> None:
    path = tmp_path / "state"
    _, state = stopped(session, 1)
    state.save(path)
    before = path.read_bytes()
    fill_disk(path)
    with pytest.raises(DiskFullError, match="state"):
        state.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
