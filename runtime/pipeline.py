"""The one loop: prompts, then chunk after chunk of latents, and the frames of each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

from sana_rt import graph_names
from sana_rt.errors import NonFiniteError, StateError
from sana_rt.graph_names import SOLVER
from sana_rt.model_spec import ModelSpec
from sana_rt.runtime import phases, prompts
from sana_rt.runtime.autoencoder import (
    Caches,
    Decoder,
    Frames,
    ImageEncoder,
    cache_regions,
    way_of,
)
from sana_rt.runtime.backends.buffers import host_dtype
from sana_rt.runtime.carried_state import CarriedState
from sana_rt.runtime.denoiser import Denoiser, Latents
from sana_rt.runtime.denoiser import latents as host_latents
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.inputs import Embeds
from sana_rt.runtime.job import Job
from sana_rt.runtime.memory import region, single
from sana_rt.runtime.prompts import projection_regions
from sana_rt.runtime.request import Request, dims
from sana_rt.runtime.residence import Residence
from sana_rt.runtime.state import Header, Identity, Kind, Position, State
from sana_rt.runtime.text import PromptTokenizer
from sana_rt.tensors import resolve

_TEXT = ("hidden_states", "attention_mask")


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total``: prompts encoded, graphs loaded, passes of the transformer made,
    latent frames decoded.
    """

    stage: Literal["encode", "load", "denoise", "decode"]
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Finished latents f32 [1, C, T, h, w] of the absolute latent ``frames``."""

    frames: range
    latents: Latents


def state_kinds(
    graphs: Graphs, model: ModelSpec, request: Request, position: Position
) -> dict[str, Kind]:
    """Dtype and shape of each tensor of a snapshot at ``position``."""
    block, blocks = graphs.signature(graph_names.block(0)), model.transformer.num_layers
    regions = [
        *CarriedState.snapshot(block, blocks),
        *(one for one in projection_regions(graphs) if one.name in _TEXT),
    ]
    if position.decoded:
        regions += cache_regions(graphs)
    if position.pending:
        regions.append(single(region("latents", graphs.signature(SOLVER), "latents")))
    named = dims(request, model) | {"frames": position.pending}
    return {one.name: (host_dtype(one.dtype), resolve(one.shape, named)) for one in regions}


class Pipeline:
    """Plays one job, phase after phase; the bidirectional model is one chunk and zero state.

    A finished chunk stays *pending*: the pass that commits it to the state runs before the next
    chunk, when the prompt of that is known. So a stream can stop after any frame, and what
    continues it is the state before the last chunk, that chunk, and the decoder's caches.
    """

    def __init__(
        self, graphs: Graphs, residence: Residence, job: Job, progress: ProgressCallback
    ) -> None:
        self._graphs, self._residence = graphs, residence
        self._buffers = residence.buffers
        self._job, self._progress = job, progress
        self._state = CarriedState(graphs.memory, self._buffers)
        self._denoisers: dict[int, Denoiser] = {}
        self._bound_decoder: Decoder | None = None
        self._image: Latents | None = None
        self._passes = 0
        self._pending: range | None = None
        self._committed = self._decoded = 0
        self._projected: tuple[str, Embeds] | None = None
        self._whole = False  # whether the state is that of a position, not on the way to another

    def encode(self, tokenizer: PromptTokenizer) -> dict[str, Embeds]:
        """Run the text encoder on the job's prompts."""
        self._begin("encoding the prompts")
        request, count = self._job.request, len(self._job.prompts) + self._job.request.batch - 1
        self._move(phases.TEXT_ENCODER)
        self._progress(Progress("encode", 0, count))
        for name in self._residence.missing(phases.TEXT_ENCODER):
            # The same way whether it is kept or not: packed weights round differently.
            self._graphs.open(name, lasting=False)
        embeds = prompts.encode(self._graphs, self._buffers, tokenizer, request, self._job.prompts)
        self._progress(Progress("encode", count, count))
        return embeds

    def prepare(self) -> None:
        """Encode the image, and open graphs ahead of their use, so that none fails later on.

        What is loaded apart from the transformer is opened when its turn comes.
        """
        if self._job.inputs.image is not None:
            self._enter(phases.IMAGE_ENCODER)
            self._begin("encoding the image")
            encoder = ImageEncoder(self._graphs, self._buffers)
            self._image = encoder.encode(self._job.inputs.image)
        self._move(phases.TRANSFORMER)
        beside = self._residence.plan.beside(phases.TRANSFORMER)
        self._load([phase.name for phase in beside if phase.name != phases.TEXT_ENCODER])

    def chunks(self, embeds: Mapping[str, Embeds]) -> Iterator[Chunk]:
        """Denoise the clip chunk by chunk; each is finished when it is yielded.

        ``embeds`` are by prompt. A chunk of which frames are still to be decoded comes again
        when a stream continues.
        """
        self._begin("taking up the state")
        self._enter(phases.TRANSFORMER)
        if self._job.resume is None:
            self._state.reset()
        else:
            self._restore(self._job.resume)
        if self._pending is not None and self._decoded < self._pending.stop:
            yield Chunk(self._pending, self._latents(self._pending))
        for frames in self._job.chunks:
            prompt = self._job.prompt(frames.start)
            self._advance(prompt, embeds[prompt])
            latents = self._denoise(frames)
            self._pending = frames
            yield Chunk(frames, latents)

    def frames(self, chunks: Iterator[Chunk]) -> Generator[Frames]:
        """Decode chunks: u8 [n, height, width, 3] for each call, as soon as it is there."""
        for chunk in chunks:
            left = range(max(self._decoded, chunk.frames.start), chunk.frames.stop)
            for call in self._way.calls(self._graphs, left):
                self._begin(f"decoding {_span(call)}")
                self._enter(phases.DECODER)
                frames = self._decoder().decode(chunk.latents, chunk.frames, call)
                self._decoded = call.stop
                yield frames
                self._progress(Progress("decode", self._decoded, self._job.latent_frames))

    def state(self, identity: Identity) -> State:
        """A host copy of what continues the stream after the frames that were taken from it."""
        self._begin("saving the state")
        if not self._whole or self._projected is None:
            raise StateError(
                "The state is incomplete: nothing was generated yet, or a commit was interrupted.",
                expected="a stream that has given out frames and was not stopped by force.",
            )
        prompt, embeds = self._projected
        pending = self._pending
        position = Position(self._committed, len(pending or ()), self._decoded)
        later = tuple(shot for shot in self._job.later if shot.frame >= position.next)
        request = msgspec.structs.replace(self._job.request, prompt=prompt)
        tensors = {
            **self._state.download(),
            **Caches(self._graphs, self._buffers).download(self._decoded),
            "hidden_states": np.concatenate([one.hidden_states for one in embeds]),
            "attention_mask": np.concatenate([one.attention_mask for one in embeds]),
        }
        if pending is not None:
            tensors["latents"] = self._latents(pending)
        header = Header("sana-rt-stream", 2, identity, request, later, position)
        return State(header, tensors)

    def _restore(self, snapshot: State) -> None:
        """Go to where a stream was."""
        position, tensors = snapshot.header.position, snapshot.tensors
        self._state.upload(tensors)
        Caches(self._graphs, self._buffers).upload(position.decoded, tensors)
        self._committed, self._decoded = position.committed, position.decoded
        self._project(snapshot.header.request.prompt, snapshot.embeds)
        if position.pending:
            self._pending = range(position.committed, position.next)
            self._denoiser(self._pending).start(self._pending, tensors["latents"])
        self._whole = True

    def _advance(self, prompt: str, embeds: Embeds) -> None:
        """Commit the pending chunk, under its own prompt or the next one, and turn to the next."""
        self._enter(phases.TRANSFORMER)
        self._whole = False
        if self._job.recommit:
            self._project(prompt, embeds)
        before = self._pending
        if before is not None:
            self._begin(f"committing {_span(before)}")
            self._denoiser(before).commit()
            self._committed, self._pending = before.stop, None
        self._project(prompt, embeds)
        self._whole = True
        if before is not None:
            self._count()  # last, because it calls the caller, who may raise

    def _project(self, prompt: str, embeds: Embeds) -> None:
        """Make the prompt's keys and values, unless they are there."""
        if self._projected is None or self._projected[1] is not embeds:
            self._begin("projecting the prompts")
            prompts.project(self._graphs, self._buffers, embeds)
            self._projected = prompt, embeds

    def _denoise(self, frames: range) -> Latents:
        job = self._job
        denoiser = self._denoiser(frames)
        latents = job.start(frames)
        given = job.condition_frames if frames.start == 0 else 0
        if given:
            assert self._image is not None
            latents[:, :, :given] = self._image
        denoiser.start(frames, latents)
        for number, step in enumerate(job.steps, 1):
            self._begin(
                f"step {number} of {len(job.steps)}, timestep {step.timestep:g}, {_span(frames)}"
            )
            fresh = job.noise(frames, number) if step.n else None
            denoiser.step(step, job.request.guidance_scale, fresh, condition_frames=given)
            self._count()
        latents = denoiser.latents()
        _check_finite(latents, frames)
        return latents

    def release(self) -> None:
        """Let go of everything bound, which would hold the memory of what it is bound to."""
        self._denoisers.clear()
        self._bound_decoder = None

    def _denoiser(self, frames: range) -> Denoiser:
        """Bindings for a chunk of this length, of which a clip has at most two."""
        length = len(frames)
        if length not in self._denoisers:
            sized = self._buffers.sized(frames=length)
            self._denoisers[length] = Denoiser(self._graphs, sized, self._state)
        return self._denoisers[length]

    def _latents(self, frames: range) -> Latents:
        """Those of a chunk, from the buffer that all chunks share."""
        return host_latents(self._graphs.memory, self._buffers.sized(frames=len(frames)))

    @cached_property
    def _way(self) -> type[Decoder]:
        """How the plan decodes."""
        return way_of(self._residence.plan.phase(phases.DECODER).weights)

    def _decoder(self) -> Decoder:
        """Bindings for decoding."""
        if self._bound_decoder is None:
            self._bound_decoder = self._way(self._graphs, self._buffers)
        return self._bound_decoder

    def _enter(self, phase: str) -> None:
        """Load a phase, in the place of what cannot be beside it."""
        self._move(phase)
        if self._residence.missing(phase):
            self._load([phase])

    def _load(self, entered: Sequence[str]) -> None:
        """Open and bind what phases run, so that nothing is allocated while they do."""
        names = [name for phase in entered for name in self._residence.missing(phase)]
        for done, name in enumerate(names):
            self._progress(Progress("load", done, len(names)))
            self._graphs.open(name)
        if phases.TRANSFORMER in entered:
            for length in self._job.lengths:
                self._denoiser(range(length))
        if phases.DECODER in entered:
            self._decoder()
        if names:
            self._graphs.loaded()
        self._progress(Progress("load", len(names), len(names)))

    def _move(self, phase: str) -> None:
        if not self._residence.holds(phase):
            self.release()
            self._residence.move(phase)

    def _begin(self, moment: str) -> None:
        """Say what comes now; refused if another clip was started meanwhile."""
        self._graphs.begin(self, moment)

    def _count(self) -> None:
        self._passes += 1
        self._progress(Progress("denoise", self._passes, self._job.passes))


def _check_finite(latents: Latents, frames: range) -> None:
    bad = latents.size - int(np.count_nonzero(np.isfinite(latents)))
    if bad:
        raise NonFiniteError(
            f"{bad:,} of {latents.size:,} latents are NaN or infinite ({_span(frames)}).",
            expected="finite latents.",
            remedy="find the graph that wrote the first of them with --check-finite.",
        )


def _span(frames: range) -> str:
    if len(frames) == 1:
        return f"latent frame {frames.start}"
    return f"latent frames {frames.start} to {frames.stop - 1}"
