"""The sizes of frames that a model was trained at, and the one for an aspect.

The two tables are the official bins of SANA-Video, of which training pictures took the nearest
(diffusers has them as ``ASPECT_RATIO_480_BIN`` and ``ASPECT_RATIO_720_BIN``).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from sana_rt.errors import UsageError
from sana_rt.model_spec import ModelSpec


class Size(NamedTuple):
    """Pixels of a frame, in the order in which people say them."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.width * self.height

    def __str__(self) -> str:
        """Such as ``832x480``."""
        return f"{self.width}x{self.height}"


SIZES_480P: Final = (
    Size(896, 448),
    Size(832, 480),
    Size(768, 528),
    Size(720, 560),
    Size(624, 624),
    Size(592, 672),
    Size(560, 720),
    Size(528, 768),
    Size(496, 816),
    Size(480, 832),
    Size(448, 896),
)
SIZES_720P: Final = (
    Size(1344, 672),
    Size(1280, 704),
    Size(1152, 800),
    Size(1088, 832),
    Size(960, 960),
    Size(896, 1024),
    Size(832, 1088),
    Size(800, 1152),
    Size(736, 1248),
    Size(704, 1280),
    Size(672, 1344),
)
#: Aspects that people ask for by name, width to height.
ASPECTS: Final = ((2, 1), (16, 9), (3, 2), (4, 3), (1, 1), (3, 4), (2, 3), (9, 16), (1, 2))
_NEAR: Final = 1.25  # how many times the pixels of a table a model's frames may have


def sizes(model: ModelSpec) -> tuple[Size, ...]:
    """The sizes that a model was trained at, from the widest to the tallest.

    A model of another number of pixels than the released ones has those with its own number of
    pixels in the same aspects, as near as its multiples allow.
    """
    usual = Size(model.sampling.width, model.sampling.height)
    for table in (SIZES_480P, SIZES_720P):
        square = table[len(table) // 2].pixels
        if square / _NEAR < usual.pixels < square * _NEAR:
            return tuple(dict.fromkeys(nearest(model, *size) for size in table))
    scaled = (nearest(model, *_of_aspect(size, usual.pixels)) for size in SIZES_480P)
    return tuple(dict.fromkeys(scaled))


def of_aspect(model: ModelSpec, width: float, height: float) -> Size:
    """The model's size that is nearest to the aspect ``width`` to ``height``.

    What is nearest is told by height over width, as diffusers does.
    """
    return min(sizes(model), key=lambda size: abs(size.height / size.width - height / width))


def nearest(model: ModelSpec, width: float, height: float) -> Size:
    """The nearest size that the model can make: multiples, from its least to its greatest."""
    limits = zip(model.size_multiples, model.least_size, model.greatest_size, strict=True)
    tall, wide = (
        min(max(least, round(pixels / multiple) * multiple), most)
        for pixels, (multiple, least, most) in zip((height, width), limits, strict=True)
    )
    return Size(wide, tall)


def aspects_of(model: ModelSpec, size: Size) -> list[str]:
    """The named aspects that become ``size``."""
    return [f"{w}:{h}" for w, h in ASPECTS if of_aspect(model, w, h) == size]


def parse(text: str, separators: str) -> tuple[float, float]:
    """Two positive numbers with one of ``separators`` between them.

    Raises:
        UsageError: it is anything else.
    """
    for separator in separators:
        parts = text.split(separator)
        try:
            first, second = map(float, parts)
        except ValueError:
            continue
        if 0 < first < math.inf and 0 < second < math.inf:
            return first, second
    raise UsageError(
        f"{text!r} is no size or aspect.",
        expected=f"two positive numbers with {' or '.join(separators)} between them.",
    )


def _of_aspect(size: Size, pixels: int) -> tuple[float, float]:
    scale = math.sqrt(pixels / size.pixels)
    return size.width * scale, size.height * scale
