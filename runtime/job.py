"""One clip to make, and all that follows from what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sana_rt.errors import UsageError
from sana_rt.geometry import chunk_ranges
from sana_rt.model_spec import ModelSpec
from sana_rt.runtime import noise
from sana_rt.runtime.denoiser import Latents
from sana_rt.runtime.inputs import Embeds, Inputs, latents_shape
from sana_rt.runtime.prompt_schedule import ScheduledPrompt
from sana_rt.runtime.request import Request, schedule
from sana_rt.runtime.solver import Step
from sana_rt.runtime.state import Position, State


@dataclass(frozen=True, eq=False)
class Job:
    """One clip to make: the request, what the caller brings along, and what follows from them.

    ``resume`` continues a stream. ``later`` prompts take over from the request's; with
    ``recommit`` the chunk before a change is remembered under the new prompt.
    """

    model: ModelSpec
    request: Request
    inputs: Inputs
    later: tuple[ScheduledPrompt, ...] = ()
    recommit: bool = False
    resume: State | None = None

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` if what was given is of another kind."""
        for value, kind in ((self.request, Request), (self.inputs, Inputs)):
            if not isinstance(value, kind):
                raise UsageError(
                    f"{value!r:.80} was given.",
                    expected=f"a sana_rt.runtime {kind.__name__}; Session.request makes requests.",
                )

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

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Latent frames of chunks, each length once, the longest first."""
        found = {self.position.pending, *map(len, self.chunks)} - {0}
        return tuple(sorted(found, reverse=True))

    @property
    def longest(self) -> int:
        """Latent frames of the longest chunk."""
        return max(self.lengths, default=1)

    @property
    def shortest(self) -> int:
        """Latent frames of the shortest chunk."""
        return min(self.lengths, default=1)

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


def _text(request: Request) -> tuple[object, ...]:
    """What else than the prompt decides about the embeddings."""
    negative = request.negative_prompt if request.guided else ""
    return request.batch, negative, request.motion_score, request.lowercase
