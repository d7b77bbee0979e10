"""Training clips: an endless list of random scenes, the same for the same seed and index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from examples.shapes import world
from examples.shapes.world import Array, Language, Scene, Subject, Window

_HELD_OUT = world.held_out()
_RADII = (8.5, 11.0)  # pixels
_COMPANION_SHARE = 0.12
_STILL_SHARE = 0.11
_MOTION_SCORE_SHARE = 0.1  # the suffix that SANA-Video's prompts carry says nothing here


@dataclass(frozen=True)
class Caption:
    """A prompt and its language."""

    text: str
    language: Language


def scene(seed: int, index: int) -> Scene:
    """The scene number ``index``; never a held-out combination."""
    generator = np.random.default_rng((seed, index))
    subject = _subject(generator)
    companion = None
    if generator.random() < _COMPANION_SHARE:
        companion = _companion(generator, subject)
    return Scene(
        subject=subject,
        background=_pick(generator, world.BACKGROUNDS),
        radius=float(generator.uniform(*_RADII)),
        start=_place(generator),
        companion=companion,
        companion_at=_place(generator),
    )


def caption(seed: int, index: int, draw: int = 0) -> Caption:
    """The prompt of scene ``index`` in draw number ``draw``, English or Chinese by chance."""
    shown = scene(seed, index)
    generator = np.random.default_rng((seed, index, 1, draw))
    language: Language = "en" if generator.random() < 0.5 else "zh"
    template = int(generator.integers(world.num_templates(shown.subject, language)))
    text = world.prompt(shown.subject, shown.background, language, template, shown.companion)
    if generator.random() < _MOTION_SCORE_SHARE:
        text = f"{text} {world.MOTION_SCORE}"
    return Caption(text, language)


def batch(seed: int, first: int, count: int, window: Window = world.WHOLE_CLIP) -> Array:
    """Clips [count, 3, num_frames, size, size], -1 to 1, from scene ``first`` on."""
    frames = [world.render(scene(seed, index), window) for index in range(first, first + count)]
    return np.ascontiguousarray(np.stack(frames).transpose(0, 4, 1, 2, 3))


def crops(seed: int, first: int, count: int, num_frames: int, size: int) -> Array:
    """Like :func:`batch`, cut out around a part of the subject's path."""
    frames = []
    for index in range(first, first + count):
        shown = scene(seed, index)
        generator = np.random.default_rng((seed, index, 2))
        x, y = world.centre(shown, num_frames // 2)
        left, top = np.floor(generator.normal((x, y), size / 3) - size / 2)
        frames.append(world.render(shown, Window(num_frames, 0, size, float(left), float(top))))
    return np.ascontiguousarray(np.stack(frames).transpose(0, 4, 1, 2, 3))


def _subject(generator: np.random.Generator) -> Subject:
    while True:
        colour, shape = _pick(generator, world.COLOURS), _pick(generator, world.SHAPES)
        still = generator.random() < _STILL_SHARE
        direction = world.STILL if still else _pick(generator, world.DIRECTIONS)
        speed = world.STILL if still else _pick(generator, world.SPEEDS)
        subject = Subject(colour, shape, direction, speed)
        if subject.combination not in _HELD_OUT:
            return subject


def _companion(generator: np.random.Generator, subject: Subject) -> Subject:
    """A still shape of another colour, so that the two can be told apart."""
    colours = [colour for colour in world.COLOURS if colour != subject.colour]
    shape = _pick(generator, world.SHAPES)
    return Subject(_pick(generator, colours), shape, world.STILL, world.STILL)


def _place(generator: np.random.Generator) -> tuple[float, float]:
    x, y = generator.uniform(0, world.SIZE, 2)
    return float(x), float(y)


def _pick(generator: np.random.Generator, names: Iterable[str]) -> str:
    options = list(names)
    return str(options[int(generator.integers(len(options)))])
