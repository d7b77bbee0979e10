"""A layer in the format that a recipe gives it: the one description of device and emulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from sana_rt.errors import QuantizationError
from sana_rt.quantize import nvfp4
from sana_rt.quantize.layers import Layer
from sana_rt.quantize.minifloat import E4M3, CodeArray, Float32Array, FloatArray
from sana_rt.quantize.nvfp4 import NVFP4Tensor

QuantizedFormat = Literal["nvfp4", "fp8"]
#: What TRT_FP4DynamicQuantize accepts.
NVFP4_INPUT_RANKS: Final = (2, 3)


@dataclass(frozen=True)
class FP8Tensor:
    """E4M3 codes u8 and one scale for all of them, which bfloat16 holds exactly."""

    codes: CodeArray
    scale: np.float32


@dataclass(frozen=True)
class QuantizedLayer:
    """A weight and how its input is quantized.

    The weight is [N, K] for NVFP4, whose blocks lie along K, and [K, N] for FP8.
    ``input_scale`` is the input's global scale (NVFP4) or its only one (FP8).

    ``channel_scales`` f32 [K], if there are some, are what the input's channels are multiplied
    by before they are quantized, and the weight's rows are divided by. bfloat16 holds them
    exactly, so that graphs of every type have the same.
    """

    format: QuantizedFormat
    weight: NVFP4Tensor | FP8Tensor
    input_scale: np.float32
    channel_scales: Float32Array | None = None

    def dequantized(self) -> Float32Array:
        """The weight's values, f32 [K, N], divided by ``channel_scales``."""
        if isinstance(self.weight, NVFP4Tensor):
            return nvfp4.dequantize(self.weight).T
        return E4M3.decode(self.weight.codes) * self.weight.scale


def fits(layer: Layer, fmt: QuantizedFormat) -> bool:
    """Whether a layer's shape allows a format; its values may still not."""
    return fmt == "fp8" or (
        layer.shape[0] % nvfp4.BLOCK == 0 and layer.input_rank in (None, *NVFP4_INPUT_RANKS)
    )


def check(layer: Layer, fmt: QuantizedFormat) -> None:
    """Raise :class:`QuantizationError`, which names the layer, if its shape does not fit."""
    if not fits(layer, fmt):
        raise QuantizationError(
            f"{layer.name} cannot become {fmt}. Its weight [K, N] is {list(layer.shape)}, and its "
            f"input has {layer.input_rank or 'an unknown number of'} dimensions.",
            expected=f"a K that is a multiple of {nvfp4.BLOCK}, and an input of "
            f"{' or '.join(map(str, NVFP4_INPUT_RANKS))} dimensions, as TensorRT quantizes it.",
            remedy="let the recipe give this layer another format.",
        )


def quantize(
    layer: Layer,
    weight: FloatArray,
    fmt: QuantizedFormat,
    amax: float | None = None,
    channel_scales: Sequence[float] | None = None,
) -> QuantizedLayer:
    """Quantize ``layer`` with its weight [K, N]; ``amax`` is its input's largest magnitude.

    ``channel_scales`` [K], of :class:`QuantizedLayer`, are contained in ``amax``. Without
    ``amax`` the input's scale is 1. Then magnitudes up to 2688 (NVFP4) or 448 (FP8) do
    not saturate, and blocks below 0.09, or values below 0.016, are denormal.

    Raises:
        QuantizationError: weights that are not finite, K that is no multiple of 16, an input
            with more dimensions than the device quantizes, or scales that are none. Names the
            layer.
    """
    check(layer, fmt)
    try:
        scales = None if channel_scales is None else _checked_scales(layer, channel_scales)
        if scales is not None:
            weight = weight / scales[:, None]
        if fmt == "nvfp4":
            scale = np.float32(1) if amax is None else nvfp4.global_scale(amax)
            packed = nvfp4.quantize_weight(np.ascontiguousarray(weight.T))
            return QuantizedLayer(fmt, packed, scale, scales)
        scale = np.float32(1) if amax is None else fp8_scale(amax)
        return QuantizedLayer(fmt, quantize_fp8(weight), scale, scales)
    except QuantizationError as error:
        raise QuantizationError(
            f"{layer.name} cannot become {fmt}. {error.happened}",
            expected=error.expected,
            remedy=error.remedy,
        ) from error


def quantize_fp8(weight: FloatArray) -> FP8Tensor:
    """Quantize a weight with one scale, that of its largest magnitude."""
    nvfp4.check_finite(weight)
    scale = fp8_scale(float(np.abs(weight).max(initial=0)))
    return FP8Tensor(E4M3.encode(weight / scale), scale)


def fp8_scale(amax: float) -> np.float32:
    """The scale amax / 448, rounded up to the eight bits of a bfloat16; 1 for zero.

    A QuantizeLinear of bfloat16 values takes its scale in bfloat16. Rounded up, the largest
    magnitude stays within the format.
    """
    exact = np.asarray(nvfp4.checked_amax(amax) / E4M3.max, np.float32)
    bits = (exact.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    return np.float32(bits.view(np.float32)) if exact > 0 else np.float32(1)


def _checked_scales(layer: Layer, channel_scales: Sequence[float]) -> Float32Array:
    scales = np.asarray(channel_scales, np.float32)
    usable = np.isfinite(scales) & (scales > 0) & (scales.view(np.uint32) & 0xFFFF == 0)
    if scales.shape != layer.shape[:1] or not usable.all():
        raise QuantizationError(
            f"Of {scales.size} channel scales {int(usable.sum())} are positive bfloat16 values.",
            expected=f"{layer.shape[0]} of them.",
            remedy="calibrate again (sana-rt quantize --prompts).",
        )
    return scales
