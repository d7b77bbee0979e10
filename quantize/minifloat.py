"""Floating-point formats of a few bits, rounded to nearest with ties to even."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
Float32Array = npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MiniFloat:
    """A sign bit, ``exponent_bits`` and ``mantissa_bits``; ``largest`` is the last finite code.

    With exponent field e and mantissa field m a code is worth (1 + m/2^M) · 2^(e - bias), or
    for e = 0 (denormals) m/2^M · 2^(1 - bias); the bias is 2^(E - 1) - 1.
    """

    exponent_bits: int
    mantissa_bits: int
    largest: int

    @property
    def max(self) -> float:
        """The largest finite value."""
        return float(self._magnitudes[-1])

    @property
    def smallest(self) -> float:
        """The smallest value above zero."""
        return float(self._magnitudes[1])

    def encode(self, x: FloatArray) -> CodeArray:
        """Codes of finite values; beyond the largest value they saturate, -0 becomes +0."""
        codes = np.searchsorted(self._bounds, np.abs(x).astype(np.float32, copy=False))
        codes[x < 0] |= 1 << self._sign_shift
        return codes.astype(np.uint8)

    def decode(self, codes: CodeArray) -> Float32Array:
        """The values of finite codes."""
        signed = np.concatenate([self._magnitudes, -self._magnitudes])
        negative = codes >> self._sign_shift
        index = (codes & ((1 << self._sign_shift) - 1)) + negative * np.intp(self.largest + 1)
        values: Float32Array = signed[index]
        return values

    @property
    def _sign_shift(self) -> int:
        return self.exponent_bits + self.mantissa_bits

    @cached_property
    def _magnitudes(self) -> Float32Array:
        """The values of the codes 0 to ``largest``: codes are in the order of magnitude."""
        exponent, mantissa = np.divmod(np.arange(self.largest + 1), 1 << self.mantissa_bits)
        fraction = mantissa / (1 << self.mantissa_bits) + (exponent > 0)
        bias = (1 << (self.exponent_bits - 1)) - 1
        scale = 2.0 ** (np.maximum(exponent, 1) - bias)
        return np.asarray(fraction * scale, np.float32)

    @cached_property
    def _bounds(self) -> Float32Array:
        """The largest float32 that rounds to each code but the last.

        A tie goes to the even code, so the middle above an odd code belongs to the next one.
        """
        middles: Float32Array = (self._magnitudes[:-1] + self._magnitudes[1:]) / np.float32(2)
        middles[1::2] = np.nextafter(middles[1::2], np.float32(0))
        return middles


E2M1: Final = MiniFloat(2, 1, largest=0b111)  # no infinity, no NaN
E4M3: Final = MiniFloat(4, 3, largest=0b1111_110)  # no infinity; 1111_111 is NaN
