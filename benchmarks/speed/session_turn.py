"""A turn of the runtime: a variant of a bundle, through the session that commands play with.

Imports what a user of the runtime imports and little else, because its memory is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from sana_rt.benchmarks.processes import Report
from sana_rt.benchmarks.speed.turn import (
    Clip,
    Frames,
    GraphKernels,
    GraphTime,
    KernelTime,
    SessionJob,
    Turn,
    TurnCard,
    Work,
    taken,
    warm_up,
)
from sana_rt.manifest import Plan, Variant
from sana_rt.runtime.backends.base import Binding
from sana_rt.runtime.backends.buffers import Memory, Timer
from sana_rt.runtime.backends.host import HostMemory
from sana_rt.runtime.inputs import NO_INPUTS
from sana_rt.runtime.job import Job
from sana_rt.runtime.observers import Observer
from sana_rt.runtime.pipeline import Chunk, Progress
from sana_rt.runtime.request import Request
from sana_rt.runtime.session import Session

Seconds = dict[str, list[float]]
Kind = Literal["step", "commit", "latents", "frames"]

_BETWEEN: Final = ""  # the name of what is not a graph
#: What is timed by the device's clock: a kind of event, and what it came behind.
_TIMED: Final = {("step", "step"), ("commit", "latents"), ("commit", "frames")}


@dataclass(frozen=True)
class Event:
    """Something that ended: a pass of the transformer, the latents of a chunk, some frames."""

    kind: Kind
    ended: float  # by the host's clock, which does not wait for the device where a pass ends
    lasted: float | None  # since the event before it, by the device's clock


class Watch:
    """What happens in one clip, and when; ``passed`` is called after each pass."""

    def __init__(self, memory: Memory, passed: Callable[[], None]) -> None:
        self.chunks: list[Chunk] = []
        self._timer, self._passed = memory.timer(), passed
        self._ends: list[tuple[Kind, float]] = []
        self._stages: dict[tuple[str, bool], float] = {}

    def progress(self, progress: Progress) -> None:
        """What the session calls."""
        if progress.stage == "denoise":
            later = bool(self._ends) and self._ends[-1][0] in {"latents", "frames"}
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

    def events(self) -> tuple[Event, ...]:
        """All that ended; waits for the device."""
        lasted = [None, *(seconds for _, seconds in self._timer.seconds())]
        return tuple(Event(*end, each) for end, each in zip(self._ends, lasted, strict=True))

    def stage(self, name: str) -> float:
        """Seconds that a stage took; 0 if it was left out."""
        end = self._stages.get((name, True))
        return 0.0 if end is None else end - self._stages.get((name, False), end)

    def _add(self, kind: Kind) -> None:
        self._timer.mark(kind)
        self._ends.append((kind, _now()))


def turn(job: Mapping[str, Any], report: Report) -> Turn:
    """Load, warm up and play the job in this process, which should have done nothing else."""
    wanted = msgspec.convert(job, SessionJob)
    begin = _now()
    with _open(wanted) as session:
        return _Player(wanted, session, report, _now() - begin).turn()


def profile(job: Mapping[str, Any], report: Report) -> tuple[GraphTime, ...]:
    """Play the job's first request while an observer times every graph.

    With an observer, programs run command by command: nothing is replayed as a CUDA graph.
    """
    wanted, timer = msgspec.convert(job, SessionJob), GraphTimer()
    with _open(wanted, timer) as session:
        return _Player(wanted, session, report).graphs(timer)


def kernels(job: Mapping[str, Any], report: Report) -> tuple[GraphKernels, ...]:
    """Play a clip of a few steps in which each run of a graph is made once more, with a profiler.

    Plans only: nothing else tells the times of its kernels.
    """
    wanted, timer = msgspec.convert(job, SessionJob), KernelTimer()
    with _open(wanted, timer) as session:
        return _Player(wanted, session, report).kernels(timer)


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
        self._timer: Timer | None = None

    def before(self, binding: Binding, memory: Memory) -> None:  # noqa: ARG002 (the hook's)
        """The run begins."""
        if self._timer is None:
            self._timer = memory.timer()
        self._timer.mark(_BETWEEN)

    def after(self, binding: Binding, memory: Memory) -> None:  # noqa: ARG002 (the hook's)
        """The run ends."""
        assert self._timer is not None
        self._timer.mark(binding.graph)

    def clear(self) -> None:
        """Forget the runs so far."""
        self._timer = None

    def times(self) -> tuple[GraphTime, ...]:
        """The times by graph, in the order in which they first ran; waits for the device."""
        runs: dict[str, list[float]] = {}
        for name, seconds in self._timer.seconds() if self._timer else ():
            if name != _BETWEEN:
                runs.setdefault(name, []).append(seconds)
        return tuple(
            GraphTime(graph, len(each), sum(each), statistics.median(each))
            for graph, each in runs.items()
        )


class KernelTimer(Observer):
    """Lets every graph tell how long its kernels take."""

    def __init__(self) -> None:
        self._runs: dict[str, list[Mapping[str, float]]] = {}

    def after(self, binding: Binding, memory: Memory) -> None:  # noqa: ARG002 (the hook's)
        """Run it again with a profiler; a kernel that ran several times counts as their sum."""
        seconds: dict[str, float] = {}
        for name, each in binding.kernel_times():
            seconds[name] = seconds.get(name, 0.0) + each
        if seconds:
            self._runs.setdefault(binding.graph, []).append(seconds)

    def clear(self) -> None:
        """Forget the runs so far."""
        self._runs.clear()

    def times(self) -> tuple[GraphKernels, ...]:
        """The times by graph, in the order in which they first ran."""
        return tuple(
            GraphKernels(graph, len(runs), tuple(_medians(runs)))
            for graph, runs in self._runs.items()
        )


def _medians(runs: Sequence[Mapping[str, float]]) -> Iterator[KernelTime]:
    for name in dict.fromkeys(name for run in runs for name in run):
        yield KernelTime(name, statistics.median(run[name] for run in runs if name in run))


def boundaries(begin: float, ready: float, events: Sequence[Event]) -> Seconds:
    """The times of a clip that began at ``begin`` and whose chunks were first asked at ``ready``.

    See :data:`sana_rt.benchmarks.speed.turn.BOUNDARIES`.
    """
    found: Seconds = {"step": [], "commit": []}
    denoise = decode = 0.0
    asked = ready
    before: Kind | None = None
    for event in events:
        if event.kind == "latents":
            denoise += event.ended - asked
            asked = event.ended
        elif event.kind == "frames":
            decode += event.ended - asked
            asked = event.ended
        elif event.lasted is not None and (event.kind, before) in _TIMED:
            found[event.kind].append(event.lasted)
        before = event.kind
    first = next((event.ended for event in events if event.kind == "frames"), None)
    found["denoise"] = [denoise]
    if first is not None:
        found |= {"decode": [decode], "first_frame": [first - begin]}
    found["clip"] = [events[-1].ended - begin]
    return {name: values for name, values in found.items() if values}


class _Player:
    """A session, and what it has played since it was warm."""

    def __init__(
        self, job: SessionJob, session: Session, report: Report, open_seconds: float = 0.0
    ) -> None:
        self._job, self._session, self._report = job, session, report
        self._open_seconds = open_seconds
        self._warm_up = warm_up(job.requests[0])
        model = self._session.model
        self._total = sum(
            Job(model, each, NO_INPUTS).passes for each in (self._warm_up, *job.requests)
        )
        self._done = self._passes = self._decoded = 0
        self._free = [self._free_bytes()]

    def turn(self) -> Turn:
        """Load and warm up, then play every request."""
        prepared, seconds = self._load()
        for index, request in enumerate(self._job.requests):
            keep = self._job.keep if index == 0 else None
            for name, values in self._play(request, keep).items():
                seconds.setdefault(name, []).extend(values)
        text = statistics.median(seconds.get("text", [0.0]))  # which the first clip encoded, too
        seconds |= {"load": [prepared - text], "warm_up": [seconds["warm_up"][0] + text]}
        return Turn(
            work=self._work(),
            backend=self._session.backend,
            device=_device(self._session),
            dtype=self._variant.dtype,
            seconds={name: tuple(values) for name, values in seconds.items()},
            plans=any(
                isinstance(entry, Plan) for entry in self._session.graphs.signatures.values()
            ),
            device_bytes=taken(self._free),
            card=_card(self._session),
        )

    def graphs(self, timer: GraphTimer) -> tuple[GraphTime, ...]:
        """Load and warm up, then play the first request and time its graphs."""
        self._load()
        timer.clear()
        self._play(self._job.requests[0], None)
        return timer.times()

    def kernels(self, timer: KernelTimer) -> tuple[GraphKernels, ...]:
        """Load and warm up, then play the first clip again and time its kernels."""
        self._load()
        timer.clear()
        self._play(self._warm_up, None)
        return timer.times()

    @property
    def _variant(self) -> Variant:
        return self._session.bundle.manifest.variant(self._job.variant)

    def _load(self) -> tuple[float, Seconds]:
        """The first clip: seconds until it could be denoised, and what it took from there."""
        watch = self._watch()
        asked = _now()
        parts = self._start(self._warm_up, watch)
        ready = _now()
        for _ in parts:
            watch.frames()
        end = _now()
        self._free.append(self._free_bytes())
        prepared = self._open_seconds + ready - asked
        return prepared, {"compile": [watch.stage("load")], "warm_up": [end - ready]}

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
        events = watch.events()
        self._passes += sum(event.kind in {"step", "commit"} for event in events)
        self._decoded += sum(map(len, frames))
        if keep is not None:
            latents = np.concatenate([chunk.latents for chunk in watch.chunks], axis=2)
            Clip(keep).save(latents, np.concatenate(frames) if frames else None)
        text = watch.stage("encode")
        return ({"text": [text]} if text else {}) | boundaries(begin, ready, events)

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


def _card(session: Session) -> TurnCard | None:
    card = session.graphs.memory.card
    return None if card is None else TurnCard(card.name, card.compute_capability)


def _now() -> float:
    return time.perf_counter()
