"""Layers: the scales of FP8, and what cannot become what."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sana_rt.errors import QuantizationError
from sana_rt.quantize import quantized_layer
from sana_rt.quantize.layers import Layer
from sana_rt.quantize.minifloat import E4M3
from sana_rt.quantize.quantized_layer import FP8Tensor

WEIGHT = np.linspace(-3, 5, 32 * 8, dtype=np.float32).reshape(32, 8)


def layer(rank: int | None = 3) -> Layer:
    return Layer("block_00", "attn1.to_q", "x", "w", "y", (32, 8), rank)


@given(st.floats(2.0**-40, 2.0**40, width=32))
def test_an_fp8_scale_is_a_bfloat16_and_large_enough(amax: float) -> None:
    scale = quantized_layer.fp8_scale(amax)
    assert scale == scale.astype(ml_dtypes.bfloat16)
    assert amax / scale <= E4M3.max
    assert scale <= amax / E4M3.max * (1 + 2.0**-7)


def test_fp8_weights_are_those_of_ml_dtypes() -> None:
    made = quantized_layer.quantize(layer(), WEIGHT, "fp8", amax=2.0)
    assert isinstance(made.weight, FP8Tensor)
    scale = quantized_layer.fp8_scale(5.0)
    wanted = (WEIGHT / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    assert np.array_equal(made.dequantized(), wanted)
    assert made.input_scale == quantized_layer.fp8_scale(2.0)


def test_nvfp4_weights_come_back_in_their_shape() -> None:
    made = quantized_layer.quantize(layer(), WEIGHT, "nvfp4")
    assert made.dequantized().shape == WEIGHT.shape
    assert made.input_scale == 1
    # Half of E2M1's widest step, of a block whose largest value is at most 5.
    assert np.abs(made.dequantized() - WEIGHT).max() <= 5 / 6 * 1.1


def test_without_values_fp8_has_the_scale_one() -> None:
    assert quantized_layer.fp8_scale(0.0) == 1
    made = quantized_layer.quantize(layer(), WEIGHT * 0, "fp8")
    assert not made.dequantized().any()


def test_what_the_device_cannot_quantize_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"block_00/attn1\.to_q .* 5 dimensions"):
        quantized_layer.quantize(layer(rank=5), WEIGHT, "nvfp4")
    quantized_layer.quantize(layer(rank=5), WEIGHT, "fp8")


def test_which_shapes_fit() -> None:
    odd = Layer("block_00", "ff.conv_point", "x", "w", "y", (252, 8), 3)
    assert quantized_layer.fits(layer(), "nvfp4")
    assert not quantized_layer.fits(odd, "nvfp4")
    assert not quantized_layer.fits(layer(rank=5), "nvfp4")
    assert quantized_layer.fits(odd, "fp8")
    with pytest.raises(QuantizationError, match="multiple of 16"):
        quantized_layer.quantize(odd, np.ones((252, 8), np.float32), "nvfp4")


@pytest.mark.parametrize("fmt", ["nvfp4", "fp8"])
@pytest.mark.parametrize("amax", [float("nan"), float("inf"), -1.0])
def test_an_input_must_have_a_finite_magnitude(
    fmt: quantized_layer.QuantizedFormat, amax: float
) -> None:
    with pytest.raises(QuantizationError, match="largest magnitude"):
        quantized_layer.quantize(layer(), WEIGHT, fmt, amax)
