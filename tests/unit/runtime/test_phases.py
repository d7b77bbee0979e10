"""Clips whose phases take turns: the same frames, with less loaded at the same time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sana_rt.errors import CanceledError, DeviceMemoryError, UsageError
from sana_rt.runtime.backends.host import HostMemory
from sana_rt.runtime.inputs import NO_INPUTS, Inputs
from sana_rt.runtime.memory import MemoryPlan
from sana_rt.runtime.pipeline import Progress
from sana_rt.runtime.prompt_schedule import PromptSchedule, TimedPrompt
from sana_rt.runtime.request import Request
from sana_rt.runtime.session import Session

SMALL = {"prompt": "a red circle", "height": 32, "width": 48, "num_inference_steps": 2}
LONG = {"num_frames": 25, "num_inference_steps": 4}
LATER = PromptSchedule((TimedPrompt(1.5, "a blue square"),), recommit=True)
Clip = NDArray[np.uint8]


class Live:
    """Counts the bytes of host memory that are in use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        allocate = HostMemory._allocate

        def counted(memory: HostMemory, nbytes: int) -> tuple[int, object]:
            address, owner = allocate(memory, nbytes)
            self.now += nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(owner, self.free, nbytes)
            return address, owner

        monkeypatch.setattr(HostMemory, "_allocate", counted)

    def free(self, nbytes: int) -> None:
        self.now -= nbytes


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Live:
    return Live(monkeypatch)


def opened(bundle: Path, limit: int | None) -> Session:
    return Session.open(bundle, threads=1, max_memory=limit)


def asked(session: Session, **options: Any) -> Request:
    return session.request(**{**SMALL, "num_frames": 9, **options})


def smallest(bundle: Path, inputs: Inputs = NO_INPUTS, **options: Any) -> int:
    """The least memory in which a clip can be made."""
    plan: MemoryPlan = opened(bundle, 1).plan(
        opened(bundle, None).request(
            **{**SMALL, "num_frames": 9, **options}, conditioned=inputs.image is not None
        ),
        inputs,
    )
    return plan.total_bytes


@pytest.mark.parametrize("image", [False, True])
def test_phases_that_take_turns_make_the_same_clip(
    small_bundle: Path, image: bool, live: Live
) -> None:
    picture = np.random.default_rng(0).integers(256, size=(32, 48, 3), dtype=np.uint8)
    inputs = Inputs(image=picture) if image else NO_INPUTS
    clips, most, loaded = [], [], []
    for limit in (None, smallest(small_bundle, inputs)):
        live.most = live.now
        with opened(small_bundle, limit) as session:
            request = session.request(**SMALL, num_frames=9, conditioned=image)
            clips.append(np.concatenate(list(session.generate(request, inputs))))
            plan = session.plan(request, inputs)
            most.append(live.most)
            loaded.append(session.graphs.opened)
            assert live.most <= plan.buffer_bytes, "no more than planned"
            assert plan.apart == (0 if limit is None else len(plan.phases) - 1)
        gc.collect()
        assert live.now == 0
    np.testing.assert_array_equal(clips[0], clips[1])
    assert most[1] < most[0]
    assert set(loaded[1]) == {"vae_decoder_first", "vae_decoder"}
    assert set(loaded[1]) < set(loaded[0])


def test_a_stream_takes_turns_at_every_chunk(causal_bundle: Path, live: Live) -> None:
    """With another prompt, which is committed anew, and three chunks of two lengths."""
    clips, loads, most = [], [], []
    for limit in (None, smallest(causal_bundle, **LONG)):
        seen: list[Progress] = []
        live.most = live.now
        with opened(causal_bundle, limit) as session:
            request = asked(session, **LONG)
            clips.append(
                np.concatenate(list(session.stream(request, schedule=LATER, progress=seen.append)))
            )
            loads.append(sum(one.stage == "load" and one.done == one.total for one in seen))
            most.append(live.most)
        gc.collect()
    np.testing.assert_array_equal(clips[0], clips[1])
    assert loads == [1, 6], "the transformer and the decoder, for each of three chunks"
    assert most[1] < most[0]


def test_a_stream_stays_whole_where_phases_take_turns(causal_bundle: Path) -> None:
    """Stopped at every frame, wherever that is, and continued within the same budget."""
    limit = smallest(causal_bundle, **LONG)
    with opened(causal_bundle, None) as session:
        request = asked(session, **LONG)
        whole = list(session.stream(request))
    for taken in range(1, len(whole)):
        with opened(causal_bundle, limit) as session:
            stream = session.stream(request)
            begun = [next(stream) for _ in range(taken)]
            state = stream.state()
        with opened(causal_bundle, limit) as session:
            rest = list(session.stream(request, resume=state))
        np.testing.assert_array_equal(np.concatenate([*begun, *rest]), np.concatenate(whole))


def test_a_stream_that_is_canceled_while_it_loads_can_go_on(causal_bundle: Path) -> None:
    """The transformer is loaded anew before the commit, which has not begun."""
    limit = smallest(causal_bundle, **LONG)
    with opened(causal_bundle, limit) as session:
        request = asked(session, **LONG)
        whole = np.concatenate(list(session.stream(request)))
        decoded = 0

        def cancel(progress: Progress) -> None:
            nonlocal decoded
            decoded += progress.stage == "decode"
            if progress.stage == "load" and decoded and progress.done == 2:
                raise CanceledError("enough")

        stream = session.stream(request, progress=cancel)
        begun = list(_until_canceled(stream))
        rest = list(session.stream(request, resume=stream.state()))
    np.testing.assert_array_equal(np.concatenate([*begun, *rest]), whole)


def _until_canceled(stream: Iterator[Clip]) -> Iterator[Clip]:
    with pytest.raises(CanceledError):
        yield from stream


def test_the_next_clip_starts_over(small_bundle: Path, live: Live) -> None:
    """The transformer makes room for the text encoder again; nothing is left behind."""
    limit = smallest(small_bundle)
    with opened(small_bundle, None) as session:
        clips = [
            np.concatenate(list(session.generate(asked(session, seed=seed)))) for seed in (1, 2)
        ]
    gc.collect()
    with opened(small_bundle, limit) as session:
        for seed, clip in zip((1, 2), clips, strict=True):
            live.most = live.now
            again = list(session.generate(asked(session, seed=seed)))
            np.testing.assert_array_equal(np.concatenate(again), clip)
            assert live.most <= limit


def test_what_even_a_single_phase_exceeds_is_refused(small_bundle: Path) -> None:
    limit = smallest(small_bundle)
    with opened(small_bundle, limit - 1) as session:
        with pytest.raises(
            DeviceMemoryError, match=rf"(?s)needs {limit:,} bytes .*may be used \(--max-memory\)"
        ):
            session.generate(asked(session))
        assert (session.graphs.memory.allocations, session.graphs.opened) == (0, ())


def test_a_budget_that_is_not_a_size_is_refused(small_bundle: Path) -> None:
    with pytest.raises(UsageError, match="'8' is not a size of memory"):
        Session.open(small_bundle, max_memory="8")


def test_a_clip_that_has_ended_holds_no_memory(small_bundle: Path, live: Live) -> None:
    """Not for the next clip, of another size, nor for a closed session."""
    with opened(small_bundle, None) as session:
        first = session.generate(asked(session))
        next(first)
        alone = session.plan(asked(session, num_frames=5)).buffer_bytes
        second = session.generate(asked(session, num_frames=5))
        gc.collect()
        assert live.now == alone
    assert live.now == 0
    del first, second
