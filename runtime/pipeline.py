"""The one loop: prompts, then chunk after chunk of latents, and the frames of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from sana_rt.errors import UsageError
from sana_rt.model_spec import ModelSpec
from sana_rt.runtime import noise, prompts
from sana_rt.runtime.autoencoder import Decoder, Frames, ImageEncoder
from sana_rt.runtime.denoiser import Denoiser, Latents
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.inputs import Inputs, PromptEmbeds, latents_shape
from sana_rt.runtime.memory import Buffers
from sana_rt.runtime.request import Request, schedule, streaming
from sana_rt.runtime.solver import Step
from sana_rt.runtime.state import State
from sana_rt.runtime.text import PromptTokenizer


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
    """One clip to make: the request, what the caller brings along, and what follows from them."""

    model: ModelSpec
    request: Request
    inputs: Inputs

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The solver's steps, the same for every chunk."""
        return schedule(self.request, self.model)

    @cached_property
    def chunks(self) -> tuple[range, ...]:
        """The latent frames of each chunk."""
        return chunk_ranges(self.model, self.model.latent_frames(self.request.num_frames))

    @property
    def condition_frames(self) -> int:
        """Latent frames that are given: 1 in image-to-video."""
        return 0 if self.inputs.image is None else 1

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


def chunk_ranges(model: ModelSpec, latent_frames: int) -> tuple[range, ...]:
    """The chunks of a clip: one for a bidirectional model.

    A block-causal clip is cut into equal chunks, of which the first also takes the remainder
    (LongSANA's sampling script).
    """
    size = streaming(model).chunk_frames
    if not model.transformer.causal or latent_frames < 2 * size:
        return (range(latent_frames),)
    first = size + latent_frames % size
    later = (range(start, start + size) for start in range(first, latent_frames, size))
    return (range(first), *later)


class Pipeline:
    """Plays one job on allocated buffers; the bidirectional model is one chunk and zero state."""

    def __init__(
        self, graphs: Graphs, buffers: Buffers, job: Job, progress: ProgressCallback
    ) -> None:
        self._graphs, self._buffers = graphs, buffers
        self._job, self._progress = job, progress
        self._state = State(graphs.memory, buffers)
        self._denoisers: dict[int, Denoiser] = {}
        self._passes = 0
        graphs.player = self

    def encode(self, tokenizer: PromptTokenizer) -> tuple[PromptEmbeds, ...]:
        """Run the text encoder on the request's prompts."""
        self._begin("encoding the prompts")
        request = self._job.request
        self._progress(Progress("encode", 0, request.batch))
        embeds = prompts.encode(self._graphs, self._buffers, tokenizer, request)
        self._progress(Progress("encode", request.batch, request.batch))
        return embeds

    def load(self, names: tuple[str, ...]) -> None:
        """Open graphs ahead of their use, so that none fails in the middle of the clip."""
        for done, name in enumerate(names):
            self._progress(Progress("load", done, len(names)))
            self._graphs.open(name)
        self._progress(Progress("load", len(names), len(names)))

    def chunks(self, embeds: tuple[PromptEmbeds, ...]) -> Iterator[Chunk]:
        """Denoise the clip chunk by chunk; each is finished when it is yielded."""
        self._begin("projecting the prompts")
        prompts.project(self._graphs, self._buffers, embeds)
        self._state.reset()
        for frames in self._job.chunks:
            yield Chunk(frames, self._denoise(frames))
            if frames != self._job.chunks[-1]:
                self._commit(frames)

    def frames(self, chunks: Iterator[Chunk]) -> Iterator[Frames]:
        """Decode chunks: u8 [n, height, width, 3] for each latent frame, as soon as it is there."""
        decoder = Decoder(self._graphs, self._buffers)
        total = self._job.chunks[-1].stop
        for chunk in chunks:
            for position, index in enumerate(chunk.frames):
                self._begin(f"decoding latent frame {index}")
                yield decoder.decode(chunk.latents[:, :, position : position + 1], index)
                self._progress(Progress("decode", index + 1, total))

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

    def _commit(self, frames: range) -> None:
        self._begin(f"committing {_span(frames)}")
        self._denoiser(frames).commit()
        self._count()

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
        chunks = len(self._job.chunks)
        total = len(self._job.steps) * chunks + chunks - 1
        self._progress(Progress("denoise", self._passes, total))


def _span(frames: range) -> str:
    return f"latent frames {frames.start} to {frames.stop - 1}"
