"""NVFP4: values of four bits, a scale of eight bits for every 16 of them, one for the tensor.

A value is worth E2M1 code · E4M3 block scale · FP32 global scale. Blocks lie along the last
axis, the one that a matrix product sums over (K). Two codes share a byte, the first in the low
half. This is the readable form; what it computes is what graphs and plans are held against.

The weights' rules for blocks without a usable scale are those of NVIDIA's ModelOpt, so that
both pack the same bits: a block of zeros has the scale 1, and a scale below E4M3's smallest
value is raised to it. Activations are quantized on the device, where such blocks become zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sana_rt.errors import QuantizationError
from sana_rt.quantize.minifloat import E2M1, E4M3, CodeArray, Float32Array, FloatArray

BLOCK: Final = 16

_LARGEST: Final = np.float32(E2M1.max * E4M3.max)  # of a tensor whose global scale is 1
# Block scale times global scale shall not become denormal in float32.
_SMALLEST_GLOBAL_SCALE: Final = np.float32(2.0**-100)


@dataclass(frozen=True)
class NVFP4Tensor:
    """A quantized tensor [..., K]: codes u8 [..., K/2], E4M3 block scales u8 [..., K/16]."""

    codes: CodeArray
    block_scales: CodeArray
    global_scale: np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return (*self.codes.shape[:-1], 2 * self.codes.shape[-1])


def global_scale(amax: float) -> np.float32:
    """The scale with which a block whose largest magnitude is ``amax`` has the largest scale.

    Zero gives 1. Raises :class:`QuantizationError` if ``amax`` is negative or not finite.
    """
    if checked_amax(amax) == 0:
        return np.float32(1)
    return np.float32(max(np.float32(amax) / _LARGEST, _SMALLEST_GLOBAL_SCALE))


def checked_amax(amax: float) -> float:
    """``amax`` if it can be the largest magnitude of a tensor."""
    if not 0 <= amax < np.inf:
        raise QuantizationError(
            f"The largest magnitude of a tensor is {amax}.", expected="a finite number from 0."
        )
    return amax


def quantize_weight(weight: FloatArray) -> NVFP4Tensor:
    """Quantize a weight [..., K] with the global scale of its largest magnitude."""
    blocks = _blocks(weight)
    scale = global_scale(float(np.abs(blocks).max()))
    wanted = _wanted_scales(blocks, scale)
    wanted[wanted == 0] = 1
    return _quantize(blocks, E4M3.encode(np.maximum(wanted, E4M3.smallest)), scale)


def quantize_activation(x: FloatArray, scale: np.float32) -> NVFP4Tensor:
    """Quantize x [..., K] as ``TRT_FP4DynamicQuantize`` does, with a given global scale.

    Blocks beyond the range of the global scale saturate; blocks far below it become zero.
    """
    blocks = _blocks(x)
    return _quantize(blocks, E4M3.encode(_wanted_scales(blocks, scale)), scale)


def dequantize(tensor: NVFP4Tensor) -> Float32Array:
    """The values f32 [..., K]."""
    scales = E4M3.decode(tensor.block_scales) * tensor.global_scale
    values = E2M1.decode(unpack(tensor.codes)).reshape(*scales.shape, BLOCK)
    return (values * scales[..., None]).reshape(tensor.shape)


def pack(codes: CodeArray) -> CodeArray:
    """Codes u8 [..., K] of four bits to bytes [..., K/2], the first code in the low half."""
    return np.asarray(codes[..., 0::2] | (codes[..., 1::2] << 4), np.uint8)


def unpack(packed: CodeArray) -> CodeArray:
    """Bytes [..., K/2] to codes u8 [..., K]."""
    halves = np.stack([packed & 0xF, packed >> 4], axis=-1)
    return halves.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def _blocks(x: FloatArray) -> Float32Array:
    """Finite values [..., K] as f32 [..., K/16, 16]."""
    if x.ndim == 0 or x.shape[-1] % BLOCK or x.size == 0:
        raise QuantizationError(
            f"A tensor of shape {x.shape} cannot be quantized to NVFP4.",
            expected=f"a non-empty tensor whose last axis (K) is a multiple of {BLOCK}.",
            remedy="let the recipe give this layer another format.",
        )
    check_finite(x)
    return x.astype(np.float32, copy=False).reshape(*x.shape[:-1], -1, BLOCK)


def check_finite(x: FloatArray) -> None:
    """Raise :class:`QuantizationError` if a value is NaN or infinite."""
    if not np.isfinite(x).all():
        raise QuantizationError(
            f"A tensor of shape {x.shape} has {int((~np.isfinite(x)).sum()):,} values that are "
            "NaN or infinite.",
            expected="finite values: neither FP4 nor FP8 E4M3 has infinity.",
            remedy="check the checkpoint.",
        )


def _wanted_scales(blocks: Float32Array, scale: np.float32) -> Float32Array:
    """The scale of every block before it is rounded: its largest magnitude becomes code 6."""
    amax: Float32Array = np.abs(blocks).max(axis=-1)
    with np.errstate(over="ignore"):  # infinity saturates like anything too large
        return amax / (np.float32(E2M1.max) * scale)


def _quantize(blocks: Float32Array, scales: CodeArray, scale: np.float32) -> NVFP4Tensor:
    divisors = E4M3.decode(scales) * scale
    divisors[divisors == 0] = np.inf  # the block becomes zero
    with np.errstate(over="ignore"):
        codes = E2M1.encode(blocks / divisors[..., None])
    return NVFP4Tensor(pack(codes.reshape(*codes.shape[:-2], -1)), scales, scale)
