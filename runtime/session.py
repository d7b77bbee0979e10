"""A bundle opened on a backend: requests in, latents and frames out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

from sana_rt import geometry, graph_names
from sana_rt.bundle import Bundle
from sana_rt.decode_window import DecodeWindow
from sana_rt.errors import RequestError, UsageError
from sana_rt.manifest import DimRange
from sana_rt.runtime import backends
from sana_rt.runtime.autoencoder import Frames
from sana_rt.runtime.backends.base import DEFAULT_OPTIONS, BackendOptions
from sana_rt.runtime.budget import Budget, bytes_in
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.inputs import NO_INPUTS, Inputs, PathLike
from sana_rt.runtime.job import Job
from sana_rt.runtime.memory import MemoryPlan, Phase
from sana_rt.runtime.observers import FiniteCheck, Observer
from sana_rt.runtime.phases import Planner
from sana_rt.runtime.pipeline import Chunk, Pipeline, Progress, ProgressCallback
from sana_rt.runtime.prompt_schedule import NO_CHANGES, PromptSchedule
from sana_rt.runtime.request import Request, asked, dims
from sana_rt.runtime.residence import Residence
from sana_rt.runtime.state import Identity, State
from sana_rt.runtime.stream import Stream, streaming_job
from sana_rt.runtime.text import PromptTokenizer

#: More would be a pool of threads for each graph that no machine has processors for.
_MAX_THREADS: Final = 1024


def _silent(_: Progress) -> None:
    """Report nothing."""


class Session:
    """Plays a bundle, one clip at a time: starting another ends the one before it.

    Memory is allocated for the first clip, and again when the size changes::

        session = Session.open(Path("out/bundle"))
        for frames in session.generate(session.request(prompt="a red circle")):
            ...  # u8 [n, height, width, 3]
    """

    @staticmethod
    def open(
        root: PathLike,
        *,
        variant: str | None = None,
        backend: str = backends.AUTO,
        threads: int | None = None,
        keep_text_encoder: bool = False,
        cuda_graph: bool = True,
        timeout: float = DEFAULT_OPTIONS.timeout,
        max_memory: int | str | None = None,
        observers: Sequence[Observer] = (),
    ) -> Session:
        """Open the bundle at ``root``; weights are loaded when they are first needed.

        Without ``variant`` the backend chooses (:func:`sana_rt.runtime.backends.select`).
        ``keep_text_encoder`` keeps its weights for the next prompt instead of making room.
        With ``max_memory``, bytes or a size such as ``8GB``, a clip takes no more of the device:
        what does not fit at the same time is loaded in turns.
        ``cuda_graph`` lets a backend capture each step and launch it as one. ``timeout`` is how
        many seconds a GPU may take to answer before it is given up.
        ``observers`` see every run of a graph (:mod:`sana_rt.runtime.observers`).

        Raises:
            UsageError: there is no such backend, or ``threads``, ``max_memory`` or ``timeout`` is
                out of range.
            ManifestError: no bundle, or a damaged one, or it has no such variant.
            BackendError: no backend can play it; each one's reason is listed.
        """
        if not (isinstance(timeout, int | float) and timeout > 0):
            raise UsageError(f"The timeout is {timeout!r}.", expected="seconds, a number above 0.")
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= _MAX_THREADS):
            raise UsageError(
                f"The number of CPU threads is {threads!r}.", expected=f"1 to {_MAX_THREADS}."
            )
        limit = None if max_memory is None else bytes_in(max_memory)
        bundle = Bundle.open(Path(root))
        if variant is not None:
            bundle.manifest.variant(variant)
        options = BackendOptions(threads, cuda_graph, timeout)
        variants = bundle.manifest.with_current_plans()
        chosen, name = backends.select(backend, variants, variant, options)
        graphs = Graphs(bundle, name, chosen, observers)
        return Session(bundle, graphs, chosen.name, keep_text_encoder, limit)

    def __init__(
        self,
        bundle: Bundle,
        graphs: Graphs,
        backend: str,
        keep_text_encoder: bool = False,
        max_memory: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.model = bundle.manifest.model
        self.graphs = graphs
        self.backend = backend
        self._keep_text_encoder, self._max_memory = keep_text_encoder, max_memory
        self._residence: Residence | None = None
        self._pipeline: Pipeline | None = None

    def __enter__(self) -> Self:
        """Itself; the end of the ``with`` closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """See :meth:`close`."""
        self.close()

    def close(self) -> None:
        """Give back graphs, buffers and the device; a clip that is being made ends."""
        self._let_go()
        self.graphs.close_all()

    @property
    def can_decode(self) -> bool:
        """Whether the bundle can turn latents into frames."""
        return self.graphs.decoder is not None

    def request(
        self,
        *,
        conditioned: bool = False,
        resume: State | None = None,
        seconds: float | None = None,
        **options: Any,
    ) -> Request:
        """A request of ``options`` on top of the model's defaults; see :func:`asked`.

        With ``resume``, on top of the request that the stream was made with.
        """
        before = None if resume is None else resume.header.request
        return asked(self.model, options, before=before, seconds=seconds, conditioned=conditioned)

    def plan(
        self, request: Request, inputs: Inputs = NO_INPUTS, *, decode: bool = True
    ) -> MemoryPlan:
        """The memory that a clip needs, before any of it is allocated.

        As much is loaded at the same time as fits; :meth:`check` refuses what does not.
        """
        return self._plan(Job(self.model, request, inputs), decode=decode)

    def check(self, plan: MemoryPlan) -> None:
        """Raise :class:`DeviceMemoryError` unless ``plan`` fits."""
        self._budget().check(plan)

    def latents(
        self,
        request: Request,
        inputs: Inputs = NO_INPUTS,
        *,
        progress: ProgressCallback = _silent,
        check_finite: bool = False,
    ) -> Iterator[Chunk]:
        """Denoise a clip; yields chunks of latents, for a bidirectional model one.

        Raises:
            RequestError: the bundle cannot serve the request or the inputs.
            DeviceMemoryError: the plan does not fit.
            NonFiniteError: with ``check_finite``, the first graph that wrote NaN or infinity.
        """
        job = Job(self.model, request, inputs)
        _, chunks = self._start(job, progress, check_finite, decode=False)
        return chunks

    def generate(
        self,
        request: Request,
        inputs: Inputs = NO_INPUTS,
        *,
        progress: ProgressCallback = _silent,
        on_chunk: Callable[[Chunk], None] | None = None,
        check_finite: bool = False,
    ) -> Iterator[Frames]:
        """Make a clip; yields u8 [n, height, width, 3] as soon as a latent frame is decoded.

        ``on_chunk`` sees the latents of each chunk before its frames. Errors as for
        :meth:`latents`.
        """
        job = Job(self.model, request, inputs)
        pipeline, chunks = self._start(job, progress, check_finite, decode=True)
        return pipeline.frames(_observed(chunks, on_chunk) if on_chunk else chunks)

    def stream(
        self,
        request: Request,
        inputs: Inputs = NO_INPUTS,
        *,
        schedule: PromptSchedule = NO_CHANGES,
        resume: State | None = None,
        progress: ProgressCallback = _silent,
        check_finite: bool = False,
    ) -> Stream:
        """Make a clip that can be long, change its prompt, stop, and continue.

        With ``resume`` it continues that stream; ``request.num_frames`` counts from the
        stream's beginning, and the frames that were taken then do not come again. With the
        request, inputs and schedule of before, the frames are those of a stream that never stopped.
        Memory does not depend on the length if the model is block-causal.

        Raises:
            RequestError: as for :meth:`latents`, or the schedule does not fit the clip.
            StateError: ``resume`` is of another model, variant or size.
            DeviceMemoryError, NonFiniteError: as for :meth:`latents`.
        """
        identity = Identity.of(self.bundle, self.graphs.variant)
        job = Job(self.model, request, inputs, resume=resume)
        job = streaming_job(job, schedule, identity, self.graphs)
        pipeline, chunks = self._start(job, progress, check_finite, decode=True)
        return Stream(pipeline.frames(chunks), pipeline, job, identity)

    @cached_property
    def _tokenizer(self) -> PromptTokenizer:
        path = self.bundle.manifest.tokenizer
        if path is None or graph_names.TEXT_ENCODER not in self.graphs.signatures:
            raise RequestError(
                "The bundle has no text encoder and tokenizer.",
                expected="prompt embeddings made elsewhere.",
                remedy="give them (--prompt-embeds), or export a checkpoint with a text encoder.",
            )
        self.bundle.check_hash(self.bundle.manifest.file(path))
        return PromptTokenizer.from_file(self.bundle.path(path), self.model.text)

    def _start(
        self, job: Job, progress: ProgressCallback, check_finite: bool, *, decode: bool
    ) -> tuple[Pipeline, Iterator[Chunk]]:
        """Allocate, load and encode what a job needs; its chunks are made as they are taken."""
        job.inputs.check(job.request, self.model)
        residence = self._reside(job, decode=decode)
        self._pipeline = pipeline = Pipeline(self.graphs, residence, job, progress)
        self.graphs.take_over(pipeline, *([FiniteCheck()] if check_finite else []))
        embeds = dict(job.known)
        if job.prompts:
            embeds |= pipeline.encode(self._tokenizer)
        if not self._keep_text_encoder:
            self.graphs.close(graph_names.TEXT_ENCODER)
        pipeline.prepare()
        return pipeline, pipeline.chunks(embeds)

    def _reside(self, job: Job, *, decode: bool) -> Residence:
        """What the clip before had loaded, if that is what the job needs."""
        plan = self._plan(job, decode=decode)
        sizes = _sizes(job, plan.dims, self.graphs.decoder)
        residence = self._residence
        if residence is None or residence.plan != plan or not self.graphs.serves(sizes):
            self.check(plan)
            self._let_go()  # what was loaded before makes room
            self.graphs.serve(sizes)
            self._residence = residence = Residence(self.graphs, plan)
        return residence

    def _let_go(self) -> None:
        """Hold no buffer any more, not even for the iterator of a clip that has ended."""
        if self._pipeline is not None:
            self._pipeline.release()
        if self._residence is not None:
            self._residence.leave()
        self._residence = self._pipeline = None

    def _plan(self, job: Job, *, decode: bool) -> MemoryPlan:
        sizes = {file.path: file.bytes for file in self.bundle.manifest.files}
        planner = Planner(self.graphs, sizes, self._keep_text_encoder)
        ways = planner.ways(job) if decode else (None,)
        plans = [self._plan_of(job, planner.phases(job, way)) for way in ways]
        return next(filter(self._budget().expects, plans), plans[-1])

    def _plan_of(self, job: Job, phases: tuple[Phase, ...]) -> MemoryPlan:
        named = dims(job.request, self.model) | geometry.clip_dims(self.model, job.longest)
        if self.graphs.decoder is not None:
            named["seen"] = self.graphs.decoder.seen
        if job.prompts:
            named["length"] = self._tokenizer.max_length(instruction=True)
        names = (name for phase in phases for name in phase.weights)
        self.graphs.check_sizes(names, _sizes(job, named, self.graphs.decoder))
        plan = MemoryPlan(self.backend, phases, named, staged=self.graphs.memory.staged)
        return self._budget().fit(plan, together=self._keep_text_encoder)

    def _budget(self) -> Budget:
        held = 0 if self._residence is None else self._residence.held_bytes
        return Budget(self.graphs.memory.free_bytes(), held, self._max_memory)


def _sizes(
    job: Job, largest: Mapping[str, int], decoder: DecodeWindow | None
) -> dict[str, DimRange]:
    """What the named dimensions of a job will be; of the text, when it is longest."""
    sizes = {name: DimRange.fixed(size) for name, size in largest.items()}
    if decoder is not None:
        sizes["seen"] = DimRange(decoder.seen - decoder.lookahead, decoder.seen, decoder.seen)
    return sizes | {"frames": DimRange(job.shortest, job.longest, job.longest)}


def _observed(chunks: Iterator[Chunk], on_chunk: Callable[[Chunk], None]) -> Iterator[Chunk]:
    for chunk in chunks:
        on_chunk(chunk)
        yield chunk
