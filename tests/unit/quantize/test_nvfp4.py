"""The format's corners, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sana_rt.errors import QuantizationError
from sana_rt.quantize import nvfp4
from sana_rt.quantize.minifloat import E2M1, E4M3

#: The fifteen values of E2M1 (OCP Microscaling Formats 1.0, table 5), by code.
E2M1_VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def test_e2m1_has_the_published_values() -> None:
    assert E2M1.decode(np.arange(16, dtype=np.uint8)).tolist() == E2M1_VALUES


def test_ties_go_to_the_even_code() -> None:
    middles = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
    assert E2M1.decode(E2M1.encode(middles)).tolist() == [0, 1, 1, 2, 2, 4, 4]
    above = np.nextafter(middles, np.float32(9))
    assert E2M1.decode(E2M1.encode(above)).tolist() == [0.5, 1, 1.5, 2, 3, 4, 6]


def test_too_large_values_saturate() -> None:
    assert E2M1.decode(E2M1.encode(np.array([6.5, -1e30], np.float32))).tolist() == [6, -6]
    assert E4M3.decode(E4M3.encode(np.array([449, -1e30], np.float32))).tolist() == [448, -448]


def test_the_first_code_is_in_the_low_half() -> None:
    packed = nvfp4.pack(np.array([[1, 2, 15, 0]], np.uint8))
    assert packed.tolist() == [[0x21, 0x0F]]
    assert nvfp4.unpack(packed).tolist() == [[1, 2, 15, 0]]


def test_a_block_of_format_values_is_exact() -> None:
    weight = np.array([E2M1_VALUES], np.float32)
    quantized = nvfp4.quantize_weight(weight)
    assert quantized.shape == weight.shape
    assert np.array_equal(nvfp4.dequantize(quantized), weight)


def test_a_block_of_zeros_is_zero() -> None:
    weight = np.zeros((2, 32), np.float32)
    weight[1, 16:] = 3
    quantized = nvfp4.quantize_weight(weight)
    assert np.array_equal(nvfp4.dequantize(quantized), weight)
    assert E4M3.decode(quantized.block_scales)[0].tolist() == [1, 1]


def test_a_tensor_of_zeros_has_the_global_scale_one() -> None:
    quantized = nvfp4.quantize_weight(np.zeros((1, 16), np.float32))
    assert quantized.global_scale == 1
    assert not nvfp4.dequantize(quantized).any()


@pytest.mark.parametrize("ratio", [2.0**-16, 2.0**-17, 2.0**-19, 1e-30])
def test_small_blocks_beside_large_ones(ratio: float) -> None:
    """Denormal scales: the weight keeps a scale, the activation may drop to zero."""
    x = np.repeat(np.array([[1.0, ratio]], np.float32), 16, axis=1)
    weight = nvfp4.quantize_weight(x)
    assert E4M3.decode(weight.block_scales)[0, 1] >= E4M3.smallest
    activation = nvfp4.quantize_activation(x, weight.global_scale)
    for quantized in (weight, activation):
        values = nvfp4.dequantize(quantized)
        assert np.isfinite(values).all()
        assert values[0, 0] == 1
        assert 0 <= values[0, 16] <= 2 * ratio


def test_activations_beyond_the_range_saturate() -> None:
    x = np.full((1, 1, 16), 1e5, np.float32)
    values = nvfp4.dequantize(nvfp4.quantize_activation(x, np.float32(1)))
    assert set(values.ravel()) == {E2M1.max * E4M3.max}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = np.ones((2, 16), np.float32)
    x[1, 3] = bad
    with pytest.raises(QuantizationError):
        nvfp4.quantize_weight(x)
    with pytest.raises(QuantizationError, match="1 values that are NaN or infinite"):
        nvfp4.quantize_activation(x, np.float32(1))


@pytest.mark.parametrize("shape", [(4, 24), (4, 8), (0, 16), ()])
def test_k_must_be_a_multiple_of_sixteen(shape: tuple[int, ...]) -> None:
    with pytest.raises(QuantizationError, match="multiple of 16"):
        nvfp4.quantize_weight(np.ones(shape, np.float32))


@pytest.mark.parametrize("amax", [-1.0, np.nan, np.inf])
def test_a_global_scale_needs_a_finite_magnitude(amax: float) -> None:
    with pytest.raises(QuantizationError, match="largest magnitude"):
        nvfp4.global_scale(amax)
