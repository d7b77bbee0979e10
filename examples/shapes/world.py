"""The world of coloured shapes: what a clip shows, the words for it, and how it is drawn.

A clip is 64×64 pixels at 8 frames a second. One shape moves at constant velocity over a
plain background and comes back on the other side when it leaves the picture, so that its
direction is the same in every crop of a clip of any length.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Language = Literal["en", "zh"]
Array = npt.NDArray[np.float32]

SIZE: Final = 64  # pixels, height and width
FPS: Final = 8
NUM_FRAMES: Final = 17

#: RGB, 0 to 255.
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (225, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (240, 225, 50),
    "green": (40, 185, 60),
    "cyan": (60, 215, 220),
    "blue": (40, 80, 235),
    "purple": (155, 50, 205),
    "white": (245, 245, 245),
}
BACKGROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "black": (14, 14, 14),
    "grey": (100, 100, 100),
    "brown": (92, 66, 44),
    "navy": (28, 36, 78),
}
SHAPES: Final = ("circle", "square", "triangle")
#: Clockwise from right; x grows to the right, y downwards.
DIRECTIONS: Final = (
    "right", "lower_right", "down", "lower_left", "left", "upper_left", "up", "upper_right",
)  # fmt: skip
STILL: Final = "still"
#: Pixels a frame.
SPEEDS: Final[dict[str, float]] = {"slow": 1.0, "fast": 2.5}
MOTION_SCORE: Final = "motion score: 30."

_TURN = 2 * math.pi / len(DIRECTIONS)
_HELD_OUT_SEED = 20_260
_DIRECTIONS_HELD_OUT = 2  # of nine (eight and still), for each colour and shape


@dataclass(frozen=True)
class Subject:
    """What the prompt names: the part of a scene that the judge looks for."""

    colour: str
    shape: str
    direction: str
    speed: str

    @property
    def combination(self) -> tuple[str, str, str]:
        """Colour, shape and direction; a held-out one is never in the training clips."""
        return self.colour, self.shape, self.direction

    @property
    def velocity(self) -> tuple[float, float]:
        """Pixels a frame along x and y."""
        if self.direction == STILL:
            return 0.0, 0.0
        angle = _TURN * DIRECTIONS.index(self.direction)
        speed = SPEEDS[self.speed]
        return speed * math.cos(angle), speed * math.sin(angle)


@dataclass(frozen=True)
class Scene:
    """Everything a clip shows; ``companion`` is a second shape that stands still."""

    subject: Subject
    background: str
    radius: float  # pixels, of the circle of the same area
    start: tuple[float, float]  # x, y of the centre in frame 0
    companion: Subject | None = None
    companion_at: tuple[float, float] = (0.0, 0.0)


def coverage(shape: str, dx: Array, dy: Array, radius: float) -> Array:
    """How much of each pixel a shape covers, 0 to 1.

    ``dx``, ``dy`` are pixels from the centroid (they broadcast), ``radius`` that of the
    circle of the same area: shapes cannot be told apart by how many pixels they cover.
    """
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - radius * (math.sqrt(math.pi) / 2)
    else:  # equilateral, pointing up; area 3√3/4 R², inscribed radius R/2
        inscribed = radius * (math.sqrt(4 * math.pi / (3 * math.sqrt(3))) / 2)
        sides = math.sqrt(3) / 2 * np.abs(dx) - dy / 2
        distance = np.maximum(dy, sides) - inscribed
    return np.clip(np.float32(0.5) - distance, 0, 1).astype(np.float32)


def wrapped(offset: Array) -> Array:
    """``offset`` in pixels on the ring of :data:`SIZE` pixels, from -SIZE/2 to SIZE/2."""
    return np.asarray((offset + SIZE / 2) % SIZE - SIZE / 2, np.float32)


@dataclass(frozen=True)
class Window:
    """The pixels and frames of a scene to draw; the picture goes on around its borders."""

    num_frames: int = NUM_FRAMES
    first_frame: int = 0
    size: int = SIZE
    left: float = 0.0
    top: float = 0.0


WHOLE_CLIP: Final = Window()


def render(scene: Scene, window: Window = WHOLE_CLIP) -> Array:
    """RGB frames [num_frames, size, size, 3], -1 to 1."""
    frames = np.empty((window.num_frames, window.size, window.size, 3), np.float32)
    frames[:] = BACKGROUNDS[scene.background]
    if scene.companion is not None:
        _draw(frames, scene.companion, scene.companion_at, scene.radius, window)
    _draw(frames, scene.subject, scene.start, scene.radius, window)
    return frames / np.float32(127.5) - 1


def centre(scene: Scene, frame: int) -> tuple[float, float]:
    """x, y of the subject in a frame, on the plane without borders."""
    (x, y), (vx, vy) = scene.start, scene.subject.velocity
    return x + vx * frame, y + vy * frame


def _draw(
    frames: Array, subject: Subject, start: tuple[float, float], radius: float, window: Window
) -> None:
    pixels = np.arange(window.size, dtype=np.float32)
    times = np.arange(window.num_frames, dtype=np.float32)[:, None] + window.first_frame
    vx, vy = subject.velocity
    dx = wrapped(pixels + window.left - start[0] - vx * times)[:, None, :]
    dy = wrapped(pixels + window.top - start[1] - vy * times)[:, :, None]
    alpha = coverage(subject.shape, dx, dy, radius)[..., None]
    frames += alpha * (np.asarray(COLOURS[subject.colour], np.float32) - frames)


def held_out() -> frozenset[tuple[str, str, str]]:
    """Combinations of colour, shape and direction that no training clip shows."""
    generator = np.random.default_rng(_HELD_OUT_SEED)
    choices = (*DIRECTIONS, STILL)
    return frozenset(
        (colour, shape, choices[index])
        for colour, shape in itertools.product(COLOURS, SHAPES)
        for index in generator.choice(len(choices), _DIRECTIONS_HELD_OUT, replace=False)
    )


def held_out_subjects() -> tuple[tuple[Subject, str], ...]:
    """Every held-out combination at each speed it has, with a background: the judge's list."""
    generator = np.random.default_rng(_HELD_OUT_SEED)
    subjects = (
        Subject(colour, shape, direction, speed)
        for colour, shape, direction in sorted(held_out())
        for speed in ((STILL,) if direction == STILL else SPEEDS)
    )
    return tuple((subject, str(generator.choice(list(BACKGROUNDS)))) for subject in subjects)


_ENGLISH: Final = {
    "moving": (
        "{a} {colour} {shape} moving {speed} {direction} on a {background} background",
        "{a} {colour} {shape} moves {speed} {direction}, {background} background",
        "on a {background} background, {a} {colour} {shape} moves {speed} {direction}",
        "{a} {colour} {shape} {speed} moving {direction} over a {background} background",
        "{a} {colour} {shape} moving {speed} {direction}",
        "{a} {colour} {shape} moving {direction} on a {background} background",
        "{a} {colour} {shape} moving {direction}",
    ),
    STILL: (
        "{a} {colour} {shape} standing still on a {background} background",
        "{a} {colour} {shape} stands still, {background} background",
        "on a {background} background, {a} {colour} {shape} stands still",
        "a still {colour} {shape} on a {background} background",
        "{a} {colour} {shape} standing still",
    ),
    "companion": (", with a still {colour} {shape}",),
}
_CHINESE: Final = {
    "moving": (
        "一个{colour}的{shape}在{background}背景上{speed}地{direction}移动",
        "{background}背景上，一个{colour}{shape}{speed}地{direction}移动",
        "{speed}{direction}移动的{colour}{shape}，{background}背景",
        "一个{colour}的{shape}{speed}{direction}移动，背景是{background}",
        "一个{colour}{shape}{speed}地{direction}移动",
        "一个{colour}的{shape}在{background}背景上{direction}移动",
        "一个{colour}{shape}{direction}移动",
    ),
    STILL: (
        "一个{colour}的{shape}静止在{background}背景上",
        "{background}背景上，一个静止的{colour}{shape}",
        "静止的{colour}{shape}，背景是{background}",
        "一个{colour}{shape}静止不动",
    ),
    "companion": ("，还有一个静止的{colour}{shape}",),
}
_TEMPLATES: Final = {"en": _ENGLISH, "zh": _CHINESE}
_CHINESE_WORDS: Final = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色",
    "cyan": "青色", "blue": "蓝色", "purple": "紫色", "white": "白色",
    "black": "黑色", "grey": "灰色", "brown": "棕色", "navy": "深蓝色",
    "circle": "圆形", "square": "正方形", "triangle": "三角形",
    "right": "向右", "lower_right": "向右下方", "down": "向下", "lower_left": "向左下方",
    "left": "向左", "upper_left": "向左上方", "up": "向上", "upper_right": "向右上方",
    "slow": "缓慢", "fast": "快速", STILL: "静止",
}  # fmt: skip
_ENGLISH_WORDS: Final = {
    "right": "to the right", "lower_right": "to the lower right", "down": "down",
    "lower_left": "to the lower left", "left": "to the left",
    "upper_left": "to the upper left", "up": "up", "upper_right": "to the upper right",
    "slow": "slowly", "fast": "quickly",
}  # fmt: skip
_WORDS: Final = {"en": _ENGLISH_WORDS, "zh": _CHINESE_WORDS}


def word(value: str, language: Language) -> str:
    """What prompts call a colour, shape, direction, speed or background."""
    return _WORDS[language].get(value, value)


def num_templates(subject: Subject, language: Language) -> int:
    """How many ways :func:`prompt` has to describe ``subject``."""
    return len(_TEMPLATES[language][_kind(subject)])


def prompt(
    subject: Subject,
    background: str,
    language: Language = "en",
    template: int = 0,
    companion: Subject | None = None,
) -> str:
    """Describe a scene; template 0 names every attribute, the last ones leave some out."""
    text = _fill(_TEMPLATES[language][_kind(subject)][template], subject, background, language)
    if companion is not None:
        text += _fill(_TEMPLATES[language]["companion"][0], companion, background, language)
    return text


def _kind(subject: Subject) -> str:
    return STILL if subject.direction == STILL else "moving"


def _fill(template: str, subject: Subject, background: str, language: Language) -> str:
    return template.format(
        a="an" if subject.colour == "orange" else "a",
        background=word(background, language),
        **{field: word(value, language) for field, value in vars(subject).items()},
    )
