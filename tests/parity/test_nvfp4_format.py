"""The format against ONNX, ml_dtypes and ModelOpt."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from sana_rt.quantize import nvfp4
from sana_rt.quantize.minifloat import E2M1, E4M3, MiniFloat
from sana_rt.quantize.nvfp4 import BLOCK, NVFP4Tensor

Array = npt.NDArray[np.float32]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ModelOpt looks for CUDA and optional packages on import
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

finite = st.floats(-(2.0**60), 2.0**60, width=32)
#: Every exponent that float32 has, not only those that a uniform draw would meet.
spread = st.builds(lambda m, e: float(np.float32(m) * np.float32(2.0) ** e),
                   st.floats(-2, 2, width=32), st.integers(-40, 40))  # fmt: skip
tensors = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 3).map(lambda blocks: blocks * BLOCK)),
    elements=st.one_of(finite, spread, st.sampled_from([0.0, 0.25, 0.75, 2.5, 6.0])),
)
CASES = settings(max_examples=50, deadline=None)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(E2M1, ml_dtypes.float4_e2m1fn), (E4M3, ml_dtypes.float8_e4m3fn)],
    ids=["e2m1", "e4m3"],
)
@CASES
@given(x=hnp.arrays(np.float32, 64, elements=st.one_of(finite, spread)))
def test_rounding_is_that_of_ml_dtypes(ours: MiniFloat, theirs: Any, x: Array) -> None:
    x = x + np.float32(0)  # -0 has a code of its own there
    wanted = np.clip(x, -ours.max, ours.max).astype(theirs)
    assert np.array_equal(ours.encode(x), wanted.view(np.uint8))
    assert np.array_equal(ours.decode(ours.encode(x)), wanted.astype(np.float32))


@pytest.mark.parametrize("ours", [E2M1, E4M3], ids=["e2m1", "e4m3"])
def test_every_value_and_its_neighbours_round_as_in_onnx(ours: MiniFloat) -> None:
    """All codes, all middles between them, and one float32 to either side."""
    values = ours.decode(np.arange(ours.largest + 1, dtype=np.uint8))
    points = np.concatenate([values, (values[:-1] + values[1:]) / 2])
    x = np.concatenate([points, np.nextafter(points, -1e9), np.nextafter(points, 1e9)])
    x = np.concatenate([x, -x]).astype(np.float32)
    element = TensorProto.FLOAT4E2M1 if ours is E2M1 else TensorProto.FLOAT8E4M3FN
    assert np.array_equal(ours.decode(ours.encode(x)), _onnx_round_trip(x, element))


def _onnx_round_trip(x: Array, element: int) -> Array:
    nodes = [
        helper.make_node("Cast", ["x"], ["code"], to=element),
        helper.make_node("Cast", ["code"], ["y"], to=TensorProto.FLOAT),
    ]
    (y,) = _evaluate(nodes, {"x": x})
    return y


def _evaluate(nodes: list[Any], feeds: dict[str, Any], initializers: Any = ()) -> list[Array]:
    inputs = [helper.make_tensor_value_info(name, 1, array.shape) for name, array in feeds.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "case", inputs, [output], list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    outputs = ReferenceEvaluator(model).run(None, feeds)
    assert isinstance(outputs, list)
    return outputs


@CASES
@given(weight=tensors)
def test_packed_weights_mean_in_onnx_what_they_mean_here(weight: Array) -> None:
    """Two DequantizeLinear nodes on the packed bytes: what a device graph holds."""
    quantized = nvfp4.quantize_weight(weight)
    initializers = [
        helper.make_tensor(
            "codes", TensorProto.FLOAT4E2M1, weight.shape, quantized.codes.tobytes(), raw=True
        ),
        helper.make_tensor(
            "scales",
            TensorProto.FLOAT8E4M3FN,
            quantized.block_scales.shape,
            quantized.block_scales.tobytes(),
            raw=True,
        ),
        helper.make_tensor("global", TensorProto.FLOAT, (), [quantized.global_scale]),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["scales", "global"], ["steps"]),
        helper.make_node("DequantizeLinear", ["codes", "steps"], ["y"], axis=-1, block_size=BLOCK),
    ]
    (y,) = _evaluate(nodes, {}, initializers)
    assert np.array_equal(y, nvfp4.dequantize(quantized))


@CASES
@given(weight=tensors.filter(lambda w: np.abs(w).max() > 2.0**-80))
def test_weights_are_packed_as_modelopt_packs_them(weight: Array) -> None:
    """Bit for bit. ModelOpt has no rule for a tensor of zeros."""
    ours = nvfp4.quantize_weight(weight)
    packed, scales, scale = NVFP4QTensor.quantize(torch.from_numpy(weight.copy()), BLOCK)
    assert np.array_equal(ours.codes, packed._quantized_data.numpy())
    assert np.array_equal(ours.block_scales, scales.view(torch.uint8).numpy())
    assert ours.global_scale == scale.item()


@CASES
@given(x=tensors)
def test_the_error_is_at_most_half_a_step(x: Array) -> None:
    """Half of E2M1's widest step (2), and what E4M3 loses of the scale (1/16 when normal)."""
    quantized = nvfp4.quantize_weight(x)
    blocks = x.reshape(*quantized.block_scales.shape, BLOCK)
    steps = E4M3.decode(quantized.block_scales) * quantized.global_scale
    error = np.abs(nvfp4.dequantize(quantized).reshape(blocks.shape) - blocks)
    clipped = np.maximum(np.abs(blocks) - E2M1.max * steps[..., None], 0)
    assert (error <= np.maximum(steps[..., None], clipped * (1 + 1e-6))).all()


@CASES
@given(x=tensors)
def test_quantizing_again_changes_nothing(x: Array) -> None:
    once = nvfp4.quantize_weight(x)
    values = nvfp4.dequantize(once)
    again: NVFP4Tensor = nvfp4.quantize_activation(values, once.global_scale)
    kept = E4M3.decode(again.block_scales) == E4M3.decode(once.block_scales)
    blocks = nvfp4.dequantize(again).reshape(*kept.shape, BLOCK)
    assert np.array_equal(blocks[kept], values.reshape(blocks.shape)[kept])
