"""A bundle opened on a backend: requests in, latents and frames out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

from sana_rt import graph_names
from sana_rt.bundle import Bundle
from sana_rt.errors import RequestError, UsageError
from sana_rt.runtime import backends, memory, prompts
from sana_rt.runtime.autoencoder import Decoder, Frames, ImageEncoder, check_chunks
from sana_rt.runtime.denoiser import Denoiser
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.inputs import NO_INPUTS, Embeds, Inputs
from sana_rt.runtime.job import Job
from sana_rt.runtime.memory import Buffers, MemoryPlan, Region
from sana_rt.runtime.observers import FiniteCheck, Observer
from sana_rt.runtime.pipeline import Chunk, Pipeline, Progress, ProgressCallback
from sana_rt.runtime.prompt_schedule import NO_CHANGES, PromptSchedule
from sana_rt.runtime.request import Request, asked, dims
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
        root: Path,
        *,
        variant: str | None = None,
        backend: str = backends.AUTO,
        threads: int | None = None,
        keep_text_encoder: bool = False,
        observers: Sequence[Observer] = (),
    ) -> Session:
        """Open the bundle at ``root``; weights are loaded when they are first needed.

        Without ``variant`` the backend chooses (:func:`sana_rt.runtime.backends.select`).
        ``keep_text_encoder`` keeps its weights for the next prompt instead of making room.
        ``observers`` see every run of a graph (:mod:`sana_rt.runtime.observers`).

        Raises:
            UsageError: there is no such backend, or ``threads`` is below 1.
            ManifestError: no bundle, or a damaged one, or it has no such variant.
            BackendError: no backend can play it; each one's reason is listed.
        """
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= _MAX_THREADS):
            raise UsageError(
                f"The number of CPU threads is {threads!r}.", expected=f"1 to {_MAX_THREADS}."
            )
        bundle = Bundle.open(root)
        variants = bundle.manifest.variants
        if variant is not None:
            bundle.manifest.variant(variant)
        chosen, name = backends.select(backend, variants, variant, threads)
        graphs = Graphs(bundle, name, chosen, observers)
        return Session(bundle, graphs, chosen.name, keep_text_encoder)

    def __init__(
        self, bundle: Bundle, graphs: Graphs, backend: str, keep_text_encoder: bool
    ) -> None:
        self.bundle = bundle
        self.model = bundle.manifest.model
        self.graphs = graphs
        self.backend = backend
        self._keep_text_encoder = keep_text_encoder
        self._buffers: Buffers | None = None

    def __enter__(self) -> Self:
        """Itself; the end of the ``with`` closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """See :meth:`close`."""
        self.close()

    def close(self) -> None:
        """Give back graphs, buffers and the device; a clip that is being made ends."""
        self._buffers = None
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
        """The memory that a clip needs, before any of it is allocated."""
        return self._plan(Job(self.model, request, inputs), decode=decode)

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
        pipeline = Pipeline(self.graphs, self._allocate(job, decode=decode), job, progress)
        self.graphs.take_over(pipeline, *([FiniteCheck()] if check_finite else []))
        embeds = self._embeds(pipeline, job)
        names = self._names(job, decode=decode)
        pipeline.load(tuple(name for name in names if name != graph_names.TEXT_ENCODER))
        return pipeline, pipeline.chunks(embeds)

    def _allocate(self, job: Job, *, decode: bool) -> Buffers:
        """The buffers of the clip before, if they are what the job needs."""
        plan = self._plan(job, decode=decode)
        if self._buffers is None or self._buffers.plan != plan:
            self._buffers = None  # the old ones make room first
            loaded = sum(plan.weights.get(name, 0) for name in self.graphs.opened)
            plan.check(self.graphs.memory.free_bytes(), loaded)
            self._buffers = Buffers(plan, self.graphs.memory)
        return self._buffers

    def _embeds(self, pipeline: Pipeline, job: Job) -> dict[str, Embeds]:
        """What the transformer sees of each prompt; the text encoder then makes room."""
        embeds = dict(job.known)
        if job.prompts:
            # The same way whether it is kept or not: packed weights round differently.
            self.graphs.open(graph_names.TEXT_ENCODER, lasting=False)
            embeds |= pipeline.encode(self._tokenizer)
        if not self._keep_text_encoder:
            self.graphs.close(graph_names.TEXT_ENCODER)
        return embeds

    def _plan(self, job: Job, *, decode: bool) -> MemoryPlan:
        sizes = {file.path: file.bytes for file in self.bundle.manifest.files}
        names = self._names(job, decode=decode)
        entries = {name: self.graphs.signature(name) for name in names}
        named = dims(job.request, self.model) | {"frames": job.longest}
        if job.prompts:
            named["length"] = self._tokenizer.max_length(instruction=True)
        return MemoryPlan(
            self.backend,
            memory.weight_bytes(sizes, entries),
            self._regions(job, decode=decode),
            named,
            self._keep_text_encoder,
            self.graphs.activation_bytes(names),
        )

    def _regions(self, job: Job, *, decode: bool) -> tuple[Region, ...]:
        graphs = self.graphs
        transformer = self.model.transformer
        blocks = transformer.num_layers if transformer.causal else 1
        return (
            *(prompts.encoder_regions(graphs) if job.prompts else ()),
            *prompts.projection_regions(graphs),
            *Denoiser.regions(graphs, blocks_with_state=blocks),
            *(ImageEncoder.regions(graphs) if job.condition_frames else ()),
            *(Decoder.regions(graphs) if decode else ()),
        )

    def _names(self, job: Job, *, decode: bool) -> tuple[str, ...]:
        """The graphs that a job runs."""
        if decode and not self.can_decode:
            raise RequestError(
                f"The bundle has no autoencoder ({self.model.vae.kind!r} is not exported).",
                expected="a request for latents only.",
                remedy="save the latents (--save-latents) and decode them elsewhere.",
            )
        if decode:
            check_chunks(self.graphs, job.chunks)
        if job.condition_frames and graph_names.ENCODER not in self.graphs.signatures:
            raise RequestError(
                "The bundle cannot encode an image: it has no graph 'vae_encoder'.",
                remedy="leave the image out, or export a checkpoint with its autoencoder.",
            )
        self.graphs.signature(graph_names.block(0))  # all blocks are there, or none
        return (
            *((graph_names.TEXT_ENCODER,) if job.prompts else ()),
            *graph_names.transformer(self.model.transformer.num_layers),
            *((graph_names.ENCODER,) if job.condition_frames else ()),
            *((graph_names.DECODER_FIRST, graph_names.DECODER) if decode else ()),
        )


def _observed(chunks: Iterator[Chunk], on_chunk: Callable[[Chunk], None]) -> Iterator[Chunk]:
    for chunk in chunks:
        on_chunk(chunk)
        yield chunk
