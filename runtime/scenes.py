"""Prompts over time: a prompt holds from the chunk at which it begins until the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sana_rt.errors import RequestError
from sana_rt.geometry import start_seconds
from sana_rt.model_spec import Frozen, ModelSpec, Natural, NonNegative


class Scene(Frozen, frozen=True):
    """A prompt, and the second of the stream at which it shall begin."""

    seconds: NonNegative
    prompt: str


class Script(Frozen, frozen=True):
    """Prompts over time, in any order, on top of the request's prompt.

    On a change of the prompt the chunk before it is remembered as it was made; with
    ``recommit`` as the new prompt sees it, like LongSANA's interactive sampling.
    """

    scenes: tuple[Scene, ...] = ()
    recommit: bool = False


NO_SCRIPT: Final = Script()


class Shot(Frozen, frozen=True):
    """A prompt, and the latent frame at which it begins."""

    frame: Natural
    prompt: str

    def seconds(self, fps: int, model: ModelSpec) -> float:
        """When it is seen for the first time."""
        return start_seconds(self.frame, fps, model)


def shots(
    first: Shot, scenes: Sequence[Scene], chunks: Sequence[range], fps: int, model: ModelSpec
) -> tuple[Shot, ...]:
    """``first``, then every scene at the start of the chunk that is nearest to its second.

    Raises:
        RequestError: a scene begins before ``first`` or after the clip, or on another's chunk.
    """
    starts = {start_seconds(chunk.start, fps, model): chunk.start for chunk in chunks}
    found = [first]
    for scene in sorted(scenes, key=lambda scene: scene.seconds):
        _check_inside(scene, starts, chunks, fps, model)
        frame = starts[min(starts, key=lambda start: abs(start - scene.seconds))]
        if frame == found[-1].frame:
            raise RequestError(
                f"The prompt at {scene.seconds:g} s would begin on the same chunk as the one "
                f"before it, at {start_seconds(frame, fps, model):.4g} s.",
                expected="prompts on chunks of their own, which begin at "
                f"{', '.join(f'{start:.4g}' for start in starts)} s.",
            )
        found.append(Shot(frame, scene.prompt))
    return tuple(found)


def _check_inside(
    scene: Scene, starts: dict[float, int], chunks: Sequence[range], fps: int, model: ModelSpec
) -> None:
    begin = min(starts, default=0.0)
    end = start_seconds(chunks[-1].stop, fps, model) if chunks else begin
    if not begin <= scene.seconds < end:
        raise RequestError(
            f"There is a prompt at {scene.seconds:g} s, and frames are made from {begin:.4g} s "
            f"to {end:.4g} s.",
            expected="prompts that begin inside.",
        )
