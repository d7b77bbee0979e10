"""A judge that needs no network: does a clip of coloured shapes show what its prompt says?

It knows how such clips are made (:mod:`examples.shapes.world`), so segmentation is exact
arithmetic: the background is the clip's median colour, and what differs from it is the shape.

``python -m examples.shapes.judge`` plays a bundle and prints how well it follows prompts;
:func:`followed` is the same for ``sana-rt quality --scorer``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
import numpy.typing as npt
from examples.shapes import world
from examples.shapes.world import Array, Language, Subject

from sana_rt import geometry
from sana_rt.benchmarks.quality.scorer import Score
from sana_rt.cli import Failure, output
from sana_rt.errors import RequestError, SanaRTError
from sana_rt.model_spec import ModelSpec
from sana_rt.runtime import images
from sana_rt.runtime import request as requests
from sana_rt.runtime.session import Session

Frames = npt.NDArray[np.uint8]  # RGB [T, SIZE, SIZE, 3]

JUDGED_SECONDS: Final = 10  # of a longer clip, its last ones
ATTRIBUTES: Final = ("colour", "shape", "direction", "speed")

_CONTRAST = 40.0  # RGB distance from the background at which a pixel is foreground; the closest
# pair of colour and background is 111 apart, and noise of a decoder stays below 20
_MIN_AREA = 12.0  # pixels in a frame below which there is no shape
# pixels a frame, halfway between still and slow, and (geometrically) between slow and fast
_STILL_BELOW = world.SPEEDS["slow"] / 2
_SLOW_BELOW = math.sqrt(world.SPEEDS["slow"] * world.SPEEDS["fast"])
# moments (of order 3, imaginary; of order 4, real and negative) of the ideal shapes
_TRIANGLE_MOMENT = 0.661
_SQUARE_MOMENT = 0.432
_Z_95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Reading:
    """What the judge sees in a clip; attributes are None if there is no shape.

    ``stability`` (0 to 1) is the overlap of the shape in every frame with the ideal one of
    constant size; ``jitter`` (pixels) is the RMS distance of its centre from uniform motion.
    """

    colour: str | None = None
    shape: str | None = None
    direction: str | None = None
    speed: str | None = None
    stability: float = 0.0
    jitter: float = math.inf

    def agrees(self, subject: Subject, attribute: str) -> bool:
        """Whether the clip shows the ``attribute`` of ``subject``."""
        return bool(getattr(self, attribute) == getattr(subject, attribute))


def read(frames: Frames) -> Reading:
    """Measure a clip of at least two frames."""
    pixels = frames.astype(np.float32)
    background = np.median(pixels.reshape(-1, 3), axis=0)
    offset = pixels - background
    contrast = np.linalg.norm(offset, axis=-1)
    foreground = contrast > _CONTRAST
    if (foreground.sum((1, 2)) < _MIN_AREA).mean() > 0.5:
        return Reading()
    colour = _shape_colour(pixels, contrast, foreground)
    direction_of_colour = colour - background
    alpha = offset @ direction_of_colour / (direction_of_colour @ direction_of_colour)
    alpha = np.where(foreground, np.clip(alpha, 0, 1), 0).astype(np.float32)
    visible = alpha.sum((1, 2)) >= _MIN_AREA
    times, alpha = np.flatnonzero(visible).astype(np.float32), alpha[visible]
    centres = np.stack([_centre(frame) for frame in alpha])
    shape, stability = _shape(alpha, centres)
    velocity, jitter = _motion(times, centres)
    direction, speed = _words(velocity)
    return Reading(_nearest_colour(colour), shape, direction, speed, stability, jitter)


def score(readings: Sequence[Reading], subjects: Sequence[Subject]) -> dict[str, Score]:
    """How often clips show what their prompts say, by attribute."""
    return {
        attribute: wilson(
            sum(
                reading.agrees(subject, attribute)
                for reading, subject in zip(readings, subjects, strict=True)
            ),
            len(subjects),
        )
        for attribute in ATTRIBUTES
    }


def wilson(successes: int, n: int) -> Score:
    """Wilson's score interval (Wilson 1927) of ``successes`` out of ``n``."""
    share = successes / n
    spread = _Z_95**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return Score(share, max(0.0, middle - half), min(1.0, middle + half), n)


@dataclass(frozen=True)
class Trial:
    """Which prompts to play; ``seconds`` None is the model's own length."""

    language: Language = "en"
    seconds: float | None = None
    prompts: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """What came of a trial; ``clips`` are the frames that were judged."""

    subjects: tuple[Subject, ...]
    readings: tuple[Reading, ...]
    clips: tuple[Frames, ...]

    @property
    def scores(self) -> dict[str, Score]:
        """Prompt-following, by attribute."""
        return score(self.readings, self.subjects)

    @property
    def steadiness(self) -> dict[str, float]:
        """Means over the clips that show a shape."""
        shown = [reading for reading in self.readings if reading.colour is not None]
        if not shown:
            return {"stability": 0.0}
        return {
            "stability": float(np.mean([reading.stability for reading in shown])),
            "jitter": float(np.mean([reading.jitter for reading in shown])),
        }


def run(
    session: Session, trial: Trial, progress: Callable[[int, int], None] = lambda _, __: None
) -> Verdict:
    """Play the held-out prompts and read the clips, each with its own noise.

    Raises:
        RequestError: the bundle does not make clips of this world's size and speed.
    """
    chosen = held_out(trial.prompts)
    options = _options(session.model, trial)
    clips = []
    for index, (subject, background) in enumerate(chosen):
        text = world.prompt(subject, background, trial.language)
        request = requests.for_model(
            session.model, options | {"prompt": text, "seed": trial.seed + index}
        )
        frames = np.concatenate(list(session.generate(request)))
        clips.append(frames[-JUDGED_SECONDS * world.FPS :])
        progress(index + 1, len(chosen))
    readings = tuple(read(clip) for clip in clips)
    return Verdict(tuple(subject for subject, _ in chosen), readings, tuple(clips))


def followed(
    session: Session, prompts: int | None, progress: Callable[[int, int], None]
) -> dict[str, Score]:
    """How well English prompts are followed, for ``sana-rt quality --scorer``."""
    return run(session, Trial(prompts=prompts), progress).scores


def held_out(count: int | None = None) -> tuple[tuple[Subject, str], ...]:
    """The held-out subjects with their backgrounds, or ``count`` of them evenly picked."""
    every = world.held_out_subjects()
    picks = np.linspace(0, len(every) - 1, min(count or len(every), len(every)))
    return tuple(every[round(pick)] for pick in picks)


def contact_sheet(clips: Sequence[Frames], columns: int = 9) -> Frames:
    """One row a clip, ``columns`` frames evenly spaced from its first to its last."""
    picked = [
        clip[index]
        for clip in clips
        for index in np.linspace(0, len(clip) - 1, columns).round().astype(int)
    ]
    return images.contact_sheet(picked, columns)


def _options(model: ModelSpec, trial: Trial) -> dict[str, int]:
    sampling, size = model.sampling, world.SIZE
    if (sampling.height, sampling.width, sampling.fps) != (size, size, world.FPS):
        raise RequestError(
            f"{model.name!r} makes clips of {sampling.height} by {sampling.width} pixels at "
            f"{sampling.fps} frames a second.",
            expected=f"{size} by {size} at {world.FPS}: the judge knows coloured shapes only.",
            remedy="give it a bundle of examples/shapes.",
        )
    if trial.seconds is None:
        return {}
    return {"num_frames": geometry.num_frames(trial.seconds, world.FPS, model)}


def _shape_colour(pixels: Array, contrast: Array, foreground: npt.NDArray[np.bool_]) -> Array:
    """The median colour of the pixels that differ most, which no border has mixed."""
    core = foreground & (contrast > 0.8 * np.quantile(contrast[foreground], 0.9))
    return np.asarray(np.median(pixels[core], axis=0), np.float32)


def _nearest_colour(colour: Array) -> str:
    names = list(world.COLOURS)
    palette = np.array([world.COLOURS[name] for name in names], np.float32)
    return names[int(np.linalg.norm(palette - colour, axis=1).argmin())]


def _centre(alpha: Array) -> Array:
    """x, y of the centroid on the torus: by the circular mean, then exactly around it."""
    pixels = np.arange(world.SIZE, dtype=np.float32)
    angles = np.exp(2j * np.pi * pixels / world.SIZE)
    centre = []
    for axis in (0, 1):
        weights = alpha.sum(axis)
        rough = np.angle(weights @ angles) * world.SIZE / (2 * np.pi)
        exact = rough + weights @ world.wrapped(pixels - np.float32(rough)) / weights.sum()
        centre.append(exact)
    return np.array(centre, np.float32)


def _shape(alpha: Array, centres: Array) -> tuple[str, float]:
    """The shape, and how much every frame's foreground overlaps with the ideal one."""
    radius = math.sqrt(float(np.median(alpha.sum((1, 2)))) / math.pi)
    pixels = np.arange(world.SIZE, dtype=np.float32)
    dx = world.wrapped(pixels - centres[:, :1])[:, None, :]
    dy = world.wrapped(pixels - centres[:, 1:])[:, :, None]
    shape = _by_corners(np.where(np.hypot(dx, dy) < 2 * radius, alpha, 0), dx, dy)
    ideal = world.coverage(shape, dx, dy, radius)
    shared, together = np.minimum(alpha, ideal), np.maximum(alpha, ideal)
    return shape, float((shared.sum((1, 2)) / together.sum((1, 2))).mean())


def _by_corners(alpha: Array, dx: Array, dy: Array) -> str:
    """Tell shapes by their moment of order k, mean of (x + iy)^k over mean of |x + iy|^k.

    k corners make it large, and blurred corners smaller, but nothing makes one of a circle's:
    so a fifth of the ideal shape's is enough to tell.
    """
    position = dx + 1j * dy
    three, four = (
        np.mean((alpha * position**k).sum((1, 2)) / (alpha * np.abs(position) ** k).sum((1, 2)))
        for k in (3, 4)
    )
    if three.imag > 0.2 * _TRIANGLE_MOMENT:
        return "triangle"
    return "square" if -four.real > 0.2 * _SQUARE_MOMENT else "circle"


def _motion(times: Array, centres: Array) -> tuple[Array, float]:
    """The velocity (pixels a frame) of the straight line through the path, and its error."""
    steps = world.wrapped(np.diff(centres, axis=0, prepend=centres[:1]))
    path = np.cumsum(steps, axis=0)
    time = times - times.mean()
    velocity = time @ path / (time @ time)
    residual = path - path.mean(0) - np.outer(time, velocity)
    return velocity, float(np.sqrt(np.square(residual).sum(1).mean()))


def _words(velocity: Array) -> tuple[str, str]:
    speed = float(np.hypot(*velocity))
    if speed < _STILL_BELOW:
        return world.STILL, world.STILL
    turn = math.atan2(velocity[1], velocity[0]) / (2 * math.pi)
    direction = world.DIRECTIONS[round(turn * len(world.DIRECTIONS)) % len(world.DIRECTIONS)]
    return direction, "slow" if speed < _SLOW_BELOW else "fast"


@click.command(epilog="Example: python -m examples.shapes.judge out/shapes --lang zh --json")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", help="Which numerical version of the bundle to play.")
@click.option("--backend", default="auto", show_default=True, help="What to play it on.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option(
    "--lang",
    type=click.Choice(["en", "zh"]),
    default="en",
    show_default=True,
    help="Language of the prompts.",
)
@click.option("--seconds", type=click.FloatRange(min=1), help="Length; the last 10 s are judged.")
@click.option("--prompts", type=click.IntRange(min=1), help="Only so many, evenly picked.")
@click.option("--seed", default=0, show_default=True, help="Of the first clip's noise.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write frames of every clip (PNG).")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(
    bundle: Path,
    *,
    variant: str | None,
    backend: str,
    threads: int | None,
    lang: Language,
    seconds: float | None,
    prompts: int | None,
    seed: int,
    sheet: Path | None,
    as_json: bool,
) -> None:
    """Play held-out prompts of the `shapes` world with BUNDLE and read the clips.

    The prompts name combinations of colour, shape and direction that no training clip showed.
    Intervals are Wilson's, at 95 %.
    """
    try:
        session = Session.open(
            bundle, variant=variant, backend=backend, threads=threads, keep_text_encoder=True
        )
        trial = Trial(lang, seconds, prompts, seed)
        with output.stderr().status("Playing held-out prompts") as status:
            verdict = run(session, trial, lambda done, total: status.update(f"{done}/{total}"))
        if sheet is not None:
            images.write_png(sheet, contact_sheet(verdict.clips))
    except SanaRTError as error:
        raise Failure(error) from error
    if as_json:
        output.json({**verdict.scores, **verdict.steadiness})
    else:
        _show(verdict)


def _show(verdict: Verdict) -> None:
    rows = [
        (name, f"{score.fraction:.1%}", f"{score.low:.1%}", f"{score.high:.1%}", str(score.n))
        for name, score in verdict.scores.items()
    ]
    output.table("Held-out prompts followed", ("", "right>", "low>", "high>", "clips>"), rows)
    steady = [(name, f"{value:.3f}") for name, value in verdict.steadiness.items()]
    output.table("Temporal stability", ("", "mean>"), steady)


if __name__ == "__main__":
    main()
