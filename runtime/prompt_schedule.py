"""Prompts over time: a prompt holds from the chunk at which it begins until the next one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sana_rt.errors import RequestError, UsageError
from sana_rt.geometry import start_seconds
from sana_rt.model_spec import Frozen, ModelSpec, Natural, NonNegative


class TimedPrompt(Frozen, frozen=True):
    """A prompt, and the second of the stream at which it shall begin."""

    seconds: NonNegative
    prompt: str


class PromptSchedule(Frozen, frozen=True):
    """Prompts over time, in any order, on top of the request's prompt.

    On a change of the prompt the chunk before it is remembered as it was made; with
    ``recommit`` as the new prompt sees it, like LongSANA's interactive sampling.
    """

    prompts: tuple[TimedPrompt, ...] = ()
    recommit: bool = False


NO_CHANGES: Final = PromptSchedule()


def scheduled(
    prompt: str | None, timed: Iterable[tuple[float, str]], *, recommit: bool = False
) -> tuple[str | None, PromptSchedule]:
    """The prompt to begin with, which may be ``timed`` at 0 s, and those that follow.

    Raises:
        UsageError: two prompts begin, or one begins before 0 s or is no text at a number.
    """
    prompts = [TimedPrompt(*one) for one in timed]
    for one in prompts:
        if not isinstance(one.seconds, int | float) or not isinstance(one.prompt, str):
            raise UsageError(
                f"The schedule has {one.prompt!r:.80} at {one.seconds!r:.80}.",
                expected="seconds, and a text for each.",
            )
    first = [one.prompt for one in prompts if one.seconds == 0]
    if len(first) + (prompt is not None) > 1:
        raise UsageError(
            "Two prompts begin at 0 s.", expected="either the prompt or one scheduled at 0 s."
        )
    if negative := [one.seconds for one in prompts if not one.seconds >= 0]:
        raise UsageError(f"A prompt begins at {negative[0]:g} s.", expected="0 or later.")
    later = tuple(one for one in prompts if one.seconds)
    return (first[0] if first else prompt), PromptSchedule(later, recommit)


class ScheduledPrompt(Frozen, frozen=True):
    """A prompt, and the latent frame at which it begins."""

    frame: Natural
    prompt: str

    def seconds(self, fps: int, model: ModelSpec) -> float:
        """When it is seen for the first time."""
        return start_seconds(self.frame, fps, model)


def placed(
    first: ScheduledPrompt,
    prompts: Sequence[TimedPrompt],
    chunks: Sequence[range],
    fps: int,
    model: ModelSpec,
) -> tuple[ScheduledPrompt, ...]:
    """``first``, then every prompt at the start of the chunk that is nearest to its second.

    Raises:
        RequestError: a prompt begins before ``first`` or after the clip, or on another's chunk.
    """
    starts = {start_seconds(chunk.start, fps, model): chunk.start for chunk in chunks}
    found = [first]
    for prompt in sorted(prompts, key=lambda prompt: prompt.seconds):
        _check_inside(prompt, starts, chunks, fps, model)
        frame = starts[min(starts, key=lambda start: abs(start - prompt.seconds))]
        if frame == found[-1].frame:
            raise RequestError(
                f"The prompt at {prompt.seconds:g} s would begin on the same chunk as the one "
                f"before it, at {start_seconds(frame, fps, model):.4g} s.",
                expected="prompts on chunks of their own, which begin at "
                f"{', '.join(f'{start:.4g}' for start in starts)} s.",
            )
        found.append(ScheduledPrompt(frame, prompt.prompt))
    return tuple(found)


def _check_inside(
    prompt: TimedPrompt,
    starts: dict[float, int],
    chunks: Sequence[range],
    fps: int,
    model: ModelSpec,
) -> None:
    begin = min(starts, default=0.0)
    end = start_seconds(chunks[-1].stop, fps, model) if chunks else begin
    if not begin <= prompt.seconds < end:
        raise RequestError(
            f"A prompt begins at {prompt.seconds:g} s, but frames are generated from {begin:.4g} s "
            f"to {end:.4g} s.",
            expected="prompts that begin within that time.",
        )
