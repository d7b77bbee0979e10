"""The one loop: prompts, then chunk after chunk of latents, and the frames of each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

from sana_rt.errors import StateError, UsageError
from sana_rt.model_spec import ModelSpec
from sana_rt.runtime import noise, prompts
from sana_rt.runtime.autoencoder import Decoder, Frames, ImageEncoder, cache_regions
from sana_rt.runtime.backends.base import host_dtype
from sana_rt.runtime.denoiser import Denoiser, Latents
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.inputs import Embeds, Inputs, latents_shape
from sana_rt.runtime.memory import Buffers, region, single
from sana_rt.runtime.prompts import projection_regions
from sana_rt.runtime.request import Request, dims, schedule, streaming
from sana_rt.runtime.scenes import Shot
from sana_rt.runtime.snapshot import Header, Identity, Kind, Position, Snapshot
from sana_rt.runtime.solver import Step
from sana_rt.runtime.state import NAMES, State
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


@dataclass(frozen=True, eq=False)
class Job:
    """One clip to make: the request, what the caller brings along, and what follows from them.

    ``resume`` continues a stream. ``later`` prompts take over from the request's; with
    ``recommit`` the chunk before a change is remembered under the new prompt.
    """

    model: ModelSpec
    request: Request
    inputs: Inputs
    later: tuple[Shot, ...] = ()
    recommit: bool = False
    resume: Snapshot | None = None

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The solver's steps, the same for every chunk."""
        return schedule(self.request, self.model)

    @cached_property
    def chunks(self) -> tuple[range, ...]:
        """The latent frames of each chunk."""
        return chunk_ranges(self.model, self.latent_frames, self.position.next)

    @cached_property
    def position(self) -> Position:
        """Where it begins."""
        return self.resume.header.position if self.resume else Position(0, 0, 0)

    @property
    def latent_frames(self) -> int:
        """Of the whole clip, also if its beginning was made before."""
        return self.model.latent_frames(self.request.num_frames)

    @property
    def longest(self) -> int:
        """Latent frames of the longest chunk."""
        return max(self.position.pending, *map(len, self.chunks), 1)

    @property
    def passes(self) -> int:
        """How often the transformer will run."""
        commits = len(self.chunks) - (not self.position.pending) if self.chunks else 0
        return len(self.steps) * len(self.chunks) + commits

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """The prompts to encode, each once; what a resumed stream knows already is left out."""
        if self.inputs.prompt_embeds is not None:
            return ()
        wanted = dict.fromkeys((self.request.prompt, *(shot.prompt for shot in self.later)))
        return tuple(prompt for prompt in wanted if prompt not in self.known)

    @cached_property
    def known(self) -> dict[str, Embeds]:
        """The embeddings that need no text encoder, by prompt."""
        if self.inputs.prompt_embeds is not None:
            return {self.request.prompt: self.inputs.prompt_embeds}
        before = self.resume.header.request if self.resume else None
        if self.resume is None or before is None or _text(before) != _text(self.request):
            return {}
        return {before.prompt: self.resume.embeds}

    @property
    def condition_frames(self) -> int:
        """Latent frames that are given: 1 in image-to-video."""
        return 0 if self.inputs.image is None else 1

    def prompt(self, frame: int) -> str:
        """The prompt of the chunk that begins at a latent frame."""
        begun = [shot.prompt for shot in self.later if shot.frame <= frame]
        return begun[-1] if begun else self.request.prompt

    def start(self, frames: range) -> Latents:
        """What a chunk is denoised from [1, C, T, h, w]."""
        if self.inputs.noise is None:
            return self.noise(frames, 0)
        return np.array(self.inputs.noise[:, :, frames.start : frames.stop])

    def noise(self, frames: range, step: int) -> Latents:
        """Noise at its address; see :mod:`sana_rt.runtime.noise`."""
        _, channels, _, height, width = latents_shape(self.request, self.model)
        shape = (channels, height, width)
        return noise.gaussian(self.request.seed, frames=frames, frame_shape=shape, step=step)


def chunk_ranges(model: ModelSpec, latent_frames: int, start: int = 0) -> tuple[range, ...]:
    """The chunks of a clip from the latent frame ``start`` on: one for a bidirectional model.

    A block-causal clip is cut into equal chunks, of which the first also takes the remainder
    (LongSANA's sampling script).
    """
    size = streaming(model).chunk_frames
    left = latent_frames - start
    if left <= 0:
        return ()
    if not model.transformer.causal or left < 2 * size:
        return (range(start, latent_frames),)
    first = start + size + left % size
    later = (range(begin, begin + size) for begin in range(first, latent_frames, size))
    return (range(start, first), *later)


def snapshot_kinds(
    graphs: Graphs, model: ModelSpec, request: Request, position: Position
) -> dict[str, Kind]:
    """Dtype and shape of each tensor of a snapshot at ``position``."""
    blocks = model.transformer.num_layers
    regions = [*State.regions(graphs.signature("block_00"), blocks), *projection_regions(graphs)]
    regions = [one for one in regions if one.name in (*NAMES, *_TEXT)]
    if position.decoded:
        regions += cache_regions(graphs)
    if position.pending:
        regions.append(single(region("latents", graphs.signature("solver"), "latents")))
    named = dims(request, model) | {"frames": position.pending}
    return {one.name: (host_dtype(one.dtype), resolve(one.shape, named)) for one in regions}


def _text(request: Request) -> tuple[object, ...]:
    """What else than the prompt decides about the embeddings."""
    negative = request.negative_prompt if request.batch == 2 else ""
    return request.batch, negative, request.motion_score, request.lowercase


class Pipeline:
    """Plays one job on allocated buffers; the bidirectional model is one chunk and zero state.

    A finished chunk stays *pending*: the pass that commits it to the state runs before the next
    chunk, when the prompt of that is known. So a stream can stop after any frame, and what
    continues it is the state before the last chunk, that chunk, and the decoder's caches.
    """

    def __init__(
        self, graphs: Graphs, buffers: Buffers, job: Job, progress: ProgressCallback
    ) -> None:
        self._graphs, self._buffers = graphs, buffers
        self._job, self._progress = job, progress
        self._state = State(graphs.memory, buffers)
        self._denoisers: dict[int, Denoiser] = {}
        self._passes = 0
        self._pending: range | None = None
        self._committed = self._decoded = 0
        self._projected: tuple[str, Embeds] | None = None
        self._whole = False  # whether the state is that of a position, not on the way to another
        graphs.player = self

    def encode(self, tokenizer: PromptTokenizer) -> dict[str, Embeds]:
        """Run the text encoder on the job's prompts."""
        self._begin("encoding the prompts")
        request, count = self._job.request, len(self._job.prompts) + self._job.request.batch - 1
        self._progress(Progress("encode", 0, count))
        embeds = prompts.encode(self._graphs, self._buffers, tokenizer, request, self._job.prompts)
        self._progress(Progress("encode", count, count))
        return embeds

    def load(self, names: tuple[str, ...]) -> None:
        """Open graphs ahead of their use, so that none fails in the middle of the clip."""
        for done, name in enumerate(names):
            self._progress(Progress("load", done, len(names)))
            self._graphs.open(name)
        self._progress(Progress("load", len(names), len(names)))

    def chunks(self, embeds: Mapping[str, Embeds]) -> Iterator[Chunk]:
        """Denoise the clip chunk by chunk; each is finished when it is yielded.

        ``embeds`` are by prompt. A chunk of which frames are still to be decoded comes again
        when a stream continues.
        """
        self._begin("taking up the state")
        if self._job.resume is None:
            self._state.reset()
        else:
            self._restore(self._job.resume)
        if self._pending is not None and self._decoded < self._pending.stop:
            yield Chunk(self._pending, self._denoiser(self._pending).latents())
        for frames in self._job.chunks:
            prompt = self._job.prompt(frames.start)
            self._advance(prompt, embeds[prompt])
            latents = self._denoise(frames)
            self._pending = frames
            yield Chunk(frames, latents)

    def frames(self, chunks: Iterator[Chunk]) -> Generator[Frames]:
        """Decode chunks: u8 [n, height, width, 3] for each latent frame, as soon as it is there."""
        for chunk in chunks:
            for index in chunk.frames[max(self._decoded - chunk.frames.start, 0) :]:
                self._begin(f"decoding latent frame {index}")
                position = index - chunk.frames.start
                frames = self._decoder.decode(chunk.latents[:, :, position : position + 1], index)
                self._decoded = index + 1
                yield frames
                self._progress(Progress("decode", self._decoded, self._job.latent_frames))

    def snapshot(self, identity: Identity) -> Snapshot:
        """A host copy of what continues the stream after the frames that were taken from it."""
        self._begin("saving the state")
        if not self._job.model.transformer.causal:
            raise StateError("A clip made in one piece has no continuation and no state.")
        if not self._whole or self._projected is None:
            raise StateError(
                "The state is not whole: nothing was made yet, or a commit was interrupted.",
                expected="a stream of which frames were taken, and that was not stopped by force.",
            )
        prompt, embeds = self._projected
        pending = self._pending
        position = Position(self._committed, len(pending or ()), self._decoded)
        later = tuple(shot for shot in self._job.later if shot.frame >= position.next)
        request = msgspec.structs.replace(self._job.request, prompt=prompt)
        tensors = {
            **self._state.download(),
            **self._decoder.caches(self._decoded),
            "hidden_states": np.concatenate([one.hidden_states for one in embeds]),
            "attention_mask": np.concatenate([one.attention_mask for one in embeds]),
        }
        if pending is not None:
            tensors["latents"] = self._denoiser(pending).latents()
        header = Header("sana-rt-stream", 1, identity, request, later, position)
        return Snapshot(header, tensors)

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self._graphs, self._buffers)

    def _restore(self, snapshot: Snapshot) -> None:
        """Go to where a stream was."""
        position, tensors = snapshot.header.position, snapshot.tensors
        self._state.upload(tensors)
        self._decoder.restore(position.decoded, tensors)
        self._committed, self._decoded = position.committed, position.decoded
        self._project(snapshot.header.request.prompt, snapshot.embeds)
        if position.pending:
            self._pending = range(position.committed, position.next)
            self._denoiser(self._pending).start(self._pending, tensors["latents"])
        self._whole = True

    def _advance(self, prompt: str, embeds: Embeds) -> None:
        """Commit the pending chunk, under its own prompt or the next one, and turn to the next."""
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
            latents[:, :, :given] = self._encoded_image()
        denoiser.start(frames, latents)
        for number, step in enumerate(job.steps, 1):
            self._begin(
                f"step {number} of {len(job.steps)}, timestep {step.timestep:g}, {_span(frames)}"
            )
            fresh = job.noise(frames, number) if step.n else None
            denoiser.step(step, job.request.guidance_scale, fresh, condition_frames=given)
            self._count()
        return denoiser.latents()

    def _denoiser(self, frames: range) -> Denoiser:
        """Bindings for a chunk of this length, of which a clip has at most two."""
        length = len(frames)
        if length not in self._denoisers:
            sized = self._buffers.sized(frames=length)
            self._denoisers[length] = Denoiser(self._graphs, sized, self._state)
        return self._denoisers[length]

    def _encoded_image(self) -> Latents:
        assert self._job.inputs.image is not None
        self._begin("encoding the image")
        return ImageEncoder(self._graphs, self._buffers).encode(self._job.inputs.image)

    def _begin(self, moment: str) -> None:
        """Say what comes now; the buffers hold another clip if one was started meanwhile."""
        if self._graphs.player is not self:
            raise UsageError(
                "Another clip was started in this session.",
                expected="one clip at a time.",
                remedy="finish a clip first, or open a second session.",
            )
        self._graphs.moment = moment

    def _count(self) -> None:
        self._passes += 1
        self._progress(Progress("denoise", self._passes, self._job.passes))


def _span(frames: range) -> str:
    return f"latent frames {frames.start} to {frames.stop - 1}"
