"""A stream being played: frames, one latent frame at a time, and what continues it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace

from sana_rt.errors import RequestError
from sana_rt.geometry import start_seconds
from sana_rt.runtime.autoencoder import Frames
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.job import Job
from sana_rt.runtime.pipeline import Pipeline, state_kinds
from sana_rt.runtime.prompt_schedule import PromptSchedule, ScheduledPrompt, placed
from sana_rt.runtime.state import Identity, State


class Stream(Iterator[Frames]):
    """Yields u8 [n, height, width, 3] as soon as a latent frame is decoded.

    Work happens in ``next`` only. It can be left at any frame; :meth:`state` then continues it.
    ``prompts`` say which prompt begins at which latent frame.
    """

    def __init__(
        self, frames: Generator[Frames], pipeline: Pipeline, job: Job, identity: Identity
    ) -> None:
        self._frames, self._pipeline, self._identity = frames, pipeline, identity
        self.prompts = (ScheduledPrompt(job.position.next, job.request.prompt), *job.later)
        self.chunks = job.chunks  # of latent frames; a resumed one may have older frames before

    def __next__(self) -> Frames:
        """Make the next frames: one picture of the first latent frame, four of each later one."""
        return next(self._frames)

    def state(self) -> State:
        """A host copy of what makes the frames after those that were taken.

        Raises:
            StateError: no frame was taken yet, or an error interrupted a commit.
            UsageError: another clip was started in the session.
        """
        return self._pipeline.state(self._identity)

    def close(self) -> None:
        """Stop; the state can still be taken."""
        self._frames.close()


def streaming_job(job: Job, schedule: PromptSchedule, identity: Identity, graphs: Graphs) -> Job:
    """``job`` with the prompts of ``schedule``, on ``graphs``.

    Raises:
        RequestError: the model cannot be streamed that way, or nothing is left to make.
        StateError: the state to continue is of something else.
    """
    request, resume = job.request, job.resume
    _check(job, schedule)
    later: tuple[ScheduledPrompt, ...] = ()
    if resume is not None:
        kinds = state_kinds(graphs, job.model, request, resume.header.position)
        resume.check(identity, request, kinds)
        _check_left(job)
        if resume.header.request.prompt == request.prompt:
            later = resume.header.prompts
    if schedule.prompts:
        first = ScheduledPrompt(job.position.next, request.prompt)
        later = placed(first, schedule.prompts, job.chunks, request.fps, job.model)[1:]
    return replace(job, later=later, recommit=schedule.recommit)


def _check(job: Job, schedule: PromptSchedule) -> None:
    if not job.model.transformer.causal:
        raise RequestError(
            f"{job.model.name!r} generates a clip in one piece: every frame attends to all others.",
            expected="a block-causal model (LongSANA) to stream.",
            remedy="generate the clip (`sana-rt generate`), which holds all of it in memory.",
        )
    if schedule.prompts and job.inputs.prompt_embeds is not None:
        raise RequestError(
            "Both prompt embeddings and a prompt schedule are given.", expected="one of the two."
        )
    if job.resume is not None and job.inputs.image is not None:
        raise RequestError(
            "Both a first frame and a stream to resume are given.", expected="one of the two."
        )


def _check_left(job: Job) -> None:
    position, end = job.position, job.latent_frames
    if end < position.next or end <= position.decoded:
        made, asked = (
            f"{start_seconds(frame, job.request.fps, job.model):.4g} s ({frame:,} latent frames)"
            for frame in (position.next, end)
        )
        raise RequestError(
            f"The stream already has {made}, and {asked} in total are asked for.",
            expected="a longer clip: the length counts from the beginning of the stream.",
        )
