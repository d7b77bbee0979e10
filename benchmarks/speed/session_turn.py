"""A turn of the runtime: a variant of a bundle, through the session that commands play with.

Imports what a user of the runtime imports and little else, because its memory is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from sana_rt.benchmarks.processes import Report
from sana_rt.benchmarks.speed.turn import (
    Clip,
    Frames,
    GraphTime,
    SessionJob,
    Turn,
    Work,
    taken,
    warm_up,
)
from sana_rt.manifest import Variant
from sana_rt.runtime.backends.base import Binding
from sana_rt.runtime.backends.buffers import Mark, Memory
from sana_rt.runtime.backends.host import HostMemory
from sana_rt.runtime.inputs import NO_INPUTS
from sana_rt.runtime.job import Job
from sana_rt.runtime.observers import Observer
from sana_rt.runtime.pipeline import Chunk, Progress
from sana_rt.runtime.request import Request
from sana_rt.runtime.session import Session

Seconds = dict[str, list[float]]


@dataclass(frozen=True, eq=False)
class Event:
    """Something that ended: a pass of the transformer, the latents of a chunk, some frames."""

    kind: Literal["step", "commit", "latents", "frames"]
    seconds: float  # of the host's clock
    mark: Mark  # of the device's


class Watch:
    """What happens in one clip, and when; ``passed`` is called after each pass."""

    def __init__(self, memory: Memory, passed: Callable[[], None]) -> None:
        self.events: list[Event] = []
        self.chunks: list[Chunk] = []
        self._memory, self._passed = memory, passed
        self._stages: dict[tuple[str, bool], float] = {}

    def progress(self, progress: Progress) -> None:
        """What the session calls."""
        if progress.stage == "denoise":
            later = bool(self.events) and self.events[-1].kind in {"latents", "frames"}
            self._add("commit" if later else "step")
            self._passed()
        elif progress.stage != "decode":
            self._stages.setdefault((progress.stage, progress.done == progress.total), _now())

    def chunk(self, chunk: Chunk) -> None:
        """The latents of a chunk are on the host."""
        self.chunks.append(chunk)
        self._add("latents")

    def frames(self) -> None:
        """Frames are on the host."""
        self._add("frames")

    def stage(self, name: str) -> float:
        """Seconds that a stage took; 0 if it was left out."""
        end = self._stages.get((name, True))
        return 0.0 if end is None else end - self._stages.get((name, False), end)

    def _add(self, kind: Literal["step", "commit", "latents", "frames"]) -> None:
        self.events.append(Event(kind, _now(), self._memory.mark()))


def turn(job: Mapping[str, Any], report: Report) -> Turn:
    """Load, warm up and play the job in this process, which should have done nothing else."""
    return _Player(msgspec.convert(job, SessionJob), report).turn()


def profile(job: Mapping[str, Any], report: Report) -> tuple[GraphTime, ...]:
    """Play the job's first request while an observer times every graph.

    With an observer, programs run command by command: nothing is replayed as a CUDA graph.
    """
    return _Player(msgspec.convert(job, SessionJob), report, GraphTimer()).graphs()


def probe(job: Mapping[str, Any]) -> str:
    """Open the job and plan its memory; the kind of device that would play it.

    Raises what a command that plays it would raise before it loads anything.
    """
    wanted = msgspec.convert(job, SessionJob)
    with _open(wanted) as session:
        session.plan(wanted.requests[0], decode=session.can_decode)
        return _device(session)


class GraphTimer(Observer):
    """Times every run of every graph by the device's clock."""

    def __init__(self) -> None:
        self._begun: Mark | None = None
        self._runs: dict[str, list[tuple[Mark, Mark]]] = {}

    def before(self, binding: Binding, memory: Memory) -> None:  # noqa: ARG002 (the hook's)
        """The run begins."""
        self._begun = memory.mark()

    def after(self, binding: Binding, memory: Memory) -> None:
        """The run ends."""
        assert self._begun is not None
        self._runs.setdefault(binding.graph, []).append((self._begun, memory.mark()))

    def clear(self) -> None:
        """Forget the runs so far."""
        self._runs.clear()

    def times(self) -> tuple[GraphTime, ...]:
        """The times by graph, in the order in which they first ran."""
        found = []
        for graph, marks in self._runs.items():
            seconds = [end.since(begin) for begin, end in marks]
            found.append(GraphTime(graph, len(seconds), sum(seconds), float(np.median(seconds))))
        return tuple(found)


def boundaries(begin: float, ready: float, events: Sequence[Event]) -> Seconds:
    """The times of a clip that began at ``begin`` and whose chunks were first asked at ``ready``.

    See :data:`sana_rt.benchmarks.speed.turn.BOUNDARIES`.
    """
    found: Seconds = {"step": [], "commit": []}
    denoise = decode = 0.0
    asked = ready
    before: Event | None = None
    for event in events:
        if event.kind == "step" and before is not None and before.kind == "step":
            found["step"].append(event.mark.since(before.mark))
        elif event.kind == "commit" and before is not None:
            found["commit"].append(event.mark.since(before.mark))
        elif event.kind == "latents":
            denoise += event.seconds - asked
            asked = event.seconds
        elif event.kind == "frames":
            decode += event.seconds - asked
            asked = event.seconds
        before = event
    first = next((event.seconds for event in events if event.kind == "frames"), None)
    found["denoise"] = [denoise]
    if first is not None:
        found |= {"decode": [decode], "first_frame": [first - begin]}
    found["clip"] = [events[-1].seconds - begin]
    return {name: values for name, values in found.items() if values}


class _Player:
    """A session, and what it has played since it was warm."""

    def __init__(self, job: SessionJob, report: Report, *observers: GraphTimer) -> None:
        self._job, self._report, self._observers = job, report, observers
        self._begin = _now()
        self._session = _open(job, *observers)
        self._open_seconds = _now() - self._begin
        self._warm_up = warm_up(job.requests[0])
        model = self._session.model
        self._total = sum(
            Job(model, each, NO_INPUTS).passes for each in (self._warm_up, *job.requests)
        )
        self._done = self._passes = self._decoded = 0
        self._free = [self._free_bytes()]

    def turn(self) -> Turn:
        """Load and warm up, then play every request."""
        seconds = self._load()
        for index, request in enumerate(self._job.requests):
            keep = self._job.keep if index == 0 else None
            for name, values in self._play(request, keep).items():
                seconds.setdefault(name, []).extend(values)
        return Turn(
            work=self._work(),
            backend=self._session.backend,
            device=_device(self._session),
            dtype=self._variant.dtype,
            seconds={name: tuple(values) for name, values in seconds.items()},
            device_bytes=taken(self._free),
        )

    def graphs(self) -> tuple[GraphTime, ...]:
        """Load and warm up, then play the first request and time its graphs."""
        self._load()
        (timer,) = self._observers
        timer.clear()
        self._play(self._job.requests[0], None)
        return timer.times()

    @property
    def _variant(self) -> Variant:
        return self._session.bundle.manifest.variant(self._job.variant)

    def _load(self) -> Seconds:
        """The first clip, for which graphs are opened and buffers allocated."""
        watch = self._watch()
        asked = _now()
        parts = self._start(self._warm_up, watch)
        ready = _now()
        for _ in parts:
            watch.frames()
        end, text = _now(), watch.stage("encode")
        self._free.append(self._free_bytes())
        return {
            "load": [self._open_seconds + ready - asked - text],
            "compile": [watch.stage("load")],
            "warm_up": [end - ready + text],
        }

    def _play(self, request: Request, keep: str | None) -> Seconds:
        """A clip; what is made is written to the folder ``keep``, after the clip."""
        watch, frames = self._watch(), []
        begin = _now()
        parts = self._start(request, watch)
        ready = _now()
        for part in parts:
            frames.append(part)
            watch.frames()
        self._free.append(self._free_bytes())
        self._passes += sum(event.kind in {"step", "commit"} for event in watch.events)
        self._decoded += sum(map(len, frames))
        if keep is not None:
            latents = np.concatenate([chunk.latents for chunk in watch.chunks], axis=2)
            Clip(keep).save(latents, np.concatenate(frames) if frames else None)
        text = watch.stage("encode")
        return ({"text": [text]} if text else {}) | boundaries(begin, ready, watch.events)

    def _start(self, request: Request, watch: Watch) -> Iterator[Frames]:
        """The frames of a clip, as they are made; none where the bundle has no decoder."""
        session = self._session
        if session.can_decode:
            return session.generate(request, progress=watch.progress, on_chunk=watch.chunk)
        return _unseen(session.latents(request, progress=watch.progress), watch)

    def _watch(self) -> Watch:
        def passed() -> None:
            self._done += 1
            self._report(self._done, self._total)

        return Watch(self._session.graphs.memory, passed)

    def _free_bytes(self) -> int | None:
        """What is free of a card; None on a CPU, whose processes tell their memory themselves."""
        return None if _device(self._session) == "cpu" else self._session.graphs.memory.free_bytes()

    def _work(self) -> Work:
        return Work.of(
            self._session.model,
            self._variant.source.sha256,
            self._job.requests,
            passes=self._passes,
            decoded=self._decoded,
        )


def _open(job: SessionJob, *observers: Observer) -> Session:
    return Session.open(
        Path(job.bundle),
        variant=job.variant,
        backend=job.backend,
        threads=job.threads,
        keep_text_encoder=True,
        observers=observers,
    )


def _unseen(chunks: Iterator[Chunk], watch: Watch) -> Iterator[Frames]:
    """No frames: the latents of each chunk are all that there is."""
    for chunk in chunks:
        watch.chunk(chunk)
    yield from ()


def _device(session: Session) -> Literal["cpu", "cuda"]:
    return "cpu" if isinstance(session.graphs.memory, HostMemory) else "cuda"


def _now() -> float:
    return time.perf_counter()
