"""ModelOpt on a CPU: its operator for NVFP4, and what its calibration returns."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sana_rt.quantize import modelopt_cpu, nvfp4
from sana_rt.quantize.nvfp4 import BLOCK

Array = npt.NDArray[np.float32]

weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 3).map(lambda blocks: blocks * BLOCK)),
    elements=st.one_of(
        st.floats(-(2.0**60), 2.0**60, width=32),
        st.builds(lambda m, e: float(np.float32(m) * np.float32(2.0) ** e),
                  st.floats(-2, 2, width=32), st.integers(-40, 40)),
        st.sampled_from([0.0, -0.0, 0.25, 0.75, 1.25, 2.5, 5.0, 6.0]),
    ),
)  # fmt: skip


def by_operator(x: Array, amax: float) -> Array:
    """What ModelOpt's quantizers get on a CPU."""
    operator = torch.ops.tensorrt.dynamic_block_quantize_op
    rounded = operator(torch.from_numpy(x), BLOCK, torch.tensor(amax), 4, 2, 8, 4)
    return np.asarray(rounded.numpy())


@settings(max_examples=200, deadline=None)
@given(x=weights)
def test_the_operator_rounds_as_the_reference_does(x: Array) -> None:
    """Bit for bit: saturation, ties, blocks of zeros, denormal scales."""
    wanted = nvfp4.dequantize(nvfp4.quantize_weight(x))
    assert np.array_equal(by_operator(x, float(np.abs(x).max())), wanted)


def test_parts_are_put_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelopt_cpu, "_CHUNK", 3 * BLOCK)
    x = np.random.default_rng(0).standard_normal((7, 2 * BLOCK), np.float32)
    wanted = nvfp4.dequantize(nvfp4.quantize_weight(x))
    assert np.array_equal(by_operator(x, float(np.abs(x).max())), wanted)


def test_another_format_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="blocks of 32"):
        modelopt_cpu.round_to_nvfp4(torch.ones(1, 32), 32, torch.tensor(1.0), 4, 2, 8, 4)


def outliers() -> tuple[Array, Array]:
    """A weight [N, K] and inputs [T, K] a few of whose channels are 30 times the others."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((48, 64), np.float32)
    inputs = random.standard_normal((200, 64), np.float32)
    inputs[:, ::13] *= 30
    return weight, inputs


def rounded(weight: Array) -> Array:
    return nvfp4.dequantize(nvfp4.quantize_weight(weight))


def test_awq_lowers_the_error_that_it_looks_at() -> None:
    """That of the output with a quantized weight, when a few channels carry it."""
    weight, inputs = outliers()
    scales = modelopt_cpu.awq_lite(weight.copy(), inputs)
    assert np.array_equal(scales, scales.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert scales[::13].max() < np.delete(scales, np.s_[::13]).min(), "the outliers are lowered"
    exact = inputs @ weight.T
    plain = np.linalg.norm(inputs @ rounded(weight).T - exact)
    scaled = np.linalg.norm((inputs * scales) @ rounded(weight / scales).T - exact)
    assert scaled < 0.8 * plain


def test_awq_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """ModelOpt prints on stdout, where the command line has its data."""
    weight, inputs = outliers()
    modelopt_cpu.awq_lite(weight, inputs)
    assert capfd.readouterr().out == ""


def test_magnitudes_are_of_all_batches_and_behind_the_scales() -> None:
    _, inputs = outliers()
    scales = np.full(64, 0.5, np.float32)
    scales[13] = 4
    batches = ({"plain": part, "scaled": part} for part in np.split(inputs, 4))
    found = modelopt_cpu.largest_magnitudes(batches, {"plain": None, "scaled": scales})
    assert found == {
        "plain": np.abs(inputs).max(),
        "scaled": np.abs(inputs * scales).max(),
    }
