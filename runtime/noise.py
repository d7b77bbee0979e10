"""Gaussian noise that is a function of its address: the same in any language, cut in any way.

**Bits.** Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
with key (seed mod 2³², seed div 2³²) and counter

    (element div 4, latent frame, step, stream)

gives four 32-bit words w0..w3, the source of elements 4i .. 4i + 3. ``element`` is the index
in the frame's [C, H, W], W fastest; ``latent frame`` is absolute in the clip; ``step`` 0 is the
noise a chunk starts from and step i > 0 what the i-th step adds; ``stream`` is the sample.

**Box–Muller.** (w0, w1) gives elements 4i and 4i + 1, (w2, w3) the other two. For a pair (p, q):

    radius = sqrt(−2 ln u),  u = (p + 1/2) / 2³²
    angle  = 2π (q + 1/2) / 2³²
    radius · cos(angle), radius · sin(angle)

in float64, rounded once to float32 (ties to even). Logarithm, sine and cosine are the
polynomials below, made of +, −, ×, ÷ and sqrt only, whose float64 results IEEE 754 fixes: a
twin in another language gives the same bits if it evaluates in the same order and does not
fuse multiply and add. They differ from the true functions by less than 1e-15.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Doubles = NDArray[np.float64]

ROUNDS: Final = 10
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_MASK: Final = 0xFFFF_FFFF

# 1/(2k+1), (−1)^k/(2k+1)!, (−1)^k/(2k)!: highest power first, for Horner's rule.
_ATANH: Final = tuple(1 / (2 * k + 1) for k in range(10, -1, -1))
_SIN: Final = (
    1 / 355687428096000, -1 / 1307674368000, 1 / 6227020800, -1 / 39916800, 1 / 362880,
    -1 / 5040, 1 / 120, -1 / 6, 1.0,
)  # fmt: skip
_COS: Final = (
    1 / 20922789888000, -1 / 87178291200, 1 / 479001600, -1 / 3628800, 1 / 40320,
    -1 / 720, 1 / 24, -1 / 2, 1.0,
)  # fmt: skip
_LN2: Final = 0.6931471805599453
_SQRT_HALF: Final = 0.7071067811865476
_PI: Final = 3.141592653589793


def gaussian(
    seed: int,
    *,
    frames: range,
    frame_shape: tuple[int, int, int],
    step: int = 0,
    stream: int = 0,
) -> NDArray[np.float32]:
    """Standard normal latents [1, C, T, H, W] for the absolute latent ``frames``.

    ``frame_shape`` is (C, H, W); ``seed`` is in 0 .. 2⁶⁴ − 1.
    """
    C, H, W = frame_shape
    blocks = -(-C * H * W // 4)
    latents = np.empty((1, C, len(frames), H, W), np.float32)
    for position, frame in enumerate(frames):
        counter = (np.arange(blocks, dtype=np.uint32), frame, step, stream)
        values = _box_muller(philox(counter, (seed & _MASK, seed >> 32)))
        latents[0, :, position] = values[: C * H * W].reshape(C, H, W)
    return latents


def philox(counter: tuple[Words, int, int, int], key: tuple[int, int]) -> Words:
    """Philox4x32-10: words [n, 4] for the counters (c0[n], c1, c2, c3)."""
    c0, c1, c2, c3 = (np.atleast_1d(np.asarray(word, np.uint64)) for word in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & np.uint64(_MASK),
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & np.uint64(_MASK),
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def _box_muller(words: Words) -> NDArray[np.float32]:
    pairs = words.reshape(-1, 2)
    uniform: Doubles = (pairs[:, 0].astype(np.float64) + 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * _log(uniform))
    cosine, sine = _turn(pairs[:, 1])
    return np.stack([radius * cosine, radius * sine], axis=1).astype(np.float32).reshape(-1)


def _log(x: Doubles) -> Doubles:
    """Natural logarithm: x = m · 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh s."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < _SQRT_HALF
    mantissa = np.where(small, 2.0 * mantissa, mantissa)
    exponent = exponent - small
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return 2.0 * s * _horner(_ATANH, s * s) + exponent * _LN2


def _turn(q: Words) -> tuple[Doubles, Doubles]:
    """Cosine and sine of 2π (q + 1/2) / 2³²: an eighth of a turn is reduced to ±π/4 exactly."""
    quadrant = ((q >> np.uint32(29)) + np.uint32(1)) >> np.uint32(1)  # nearest of 0 .. 4
    offset = q.astype(np.float64) - quadrant * 2.0**30 + 0.5
    x = offset * (_PI * 2.0**-31)
    sine, cosine = x * _horner(_SIN, x * x), _horner(_COS, x * x)
    odd, second_half = quadrant & 1 == 1, quadrant & 2 == 2
    turned_cosine = np.where(odd, -sine, cosine)
    turned_sine = np.where(odd, cosine, sine)
    sign = np.where(second_half, -1.0, 1.0)
    return sign * turned_cosine, sign * turned_sine


def _horner(terms: tuple[float, ...], x: Doubles) -> Doubles:
    result = np.full_like(x, terms[0])
    for term in terms[1:]:
        result = result * x + term
    return result
