"""Device and emulation graphs against onnx.reference, ONNX Runtime and ModelOpt."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import nn

from sana_rt.bundle import Bundle
from sana_rt.export.modules.block import Block
from sana_rt.export.seeded import seeded_tensor
from sana_rt.quantize import graph_file, nvfp4, quantized_layer, rewrite
from sana_rt.quantize.layers import Layer, layers_of
from sana_rt.quantize.nvfp4 import BLOCK
from sana_rt.quantize.quantized_layer import QuantizedFormat, QuantizedLayer
from sana_rt.tensors import resolve

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ModelOpt looks for CUDA and optional packages on import
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

Array = npt.NDArray[Any]

DIMS = {"batch": 2, "frames": 3, "rows": 2, "columns": 4, "length": 5}
MIXED: dict[str, QuantizedFormat] = {
    "attn1.to_v": "fp8",
    "attn1.to_out.0": "fp8",
    "attn2.to_q": "fp8",
}


class TRT_FP4DynamicQuantize(OpRun):  # noqa: N801 - the operator's name
    """TensorRT's operator as its documentation defines it, with the types of ml_dtypes."""

    op_domain = "trt"

    def _run(  # type: ignore[override]
        self, x: Array, scale: Array, axis: int, block_size: int, scale_type: int
    ) -> tuple[Array, Array]:
        assert axis == -1
        assert scale_type == onnx.TensorProto.FLOAT8E4M3FN
        blocks = x.reshape(*x.shape[:-1], -1, block_size).astype(np.float32)
        wanted = np.abs(blocks).max(-1, keepdims=True) / (np.float32(6) * scale)
        scales = np.minimum(wanted, 448).astype(ml_dtypes.float8_e4m3fn)
        steps = scales.astype(np.float32) * scale
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(steps == 0, 0, blocks / steps)
        codes = np.clip(scaled, -6, 6).astype(ml_dtypes.float4_e2m1fn)
        return codes.reshape(x.shape), scales[..., 0]


@pytest.fixture(scope="module")
def block(block_bundle: Path) -> onnx.ModelProto:
    bundle = Bundle.open(block_bundle)
    return onnx.load(bundle.path(bundle.manifest.variant("fp32").graphs["block_00"].path))


@pytest.fixture(scope="module")
def feeds(block_bundle: Path) -> dict[str, Array]:
    graph = Bundle.open(block_bundle).manifest.variant("fp32").graphs["block_00"]
    random = np.random.default_rng(0)
    values = {
        tensor.name: random.standard_normal(resolve(tensor.shape, DIMS), np.float32)
        for tensor in graph.inputs
    }
    values["text_bias"] *= 0
    values["state_k"] = np.abs(values["state_k"])
    return values


def quantized(
    model: onnx.ModelProto, formats: dict[str, QuantizedFormat]
) -> tuple[tuple[Layer, ...], dict[str, QuantizedLayer]]:
    layers = layers_of("block_00", model)
    return layers, {
        layer.name: quantized_layer.quantize(
            layer,
            graph_file.value(model, layer.weight, Path()),
            formats.get(layer.node, "nvfp4"),
            amax=4.0,
        )
        for layer in layers
    }


def test_a_block_has_ten_layers(block: onnx.ModelProto) -> None:
    assert len(layers_of("block_00", block)) == 10


@pytest.mark.parametrize("formats", [{}, MIXED], ids=["max", "mixed"])
def test_device_and_emulation_are_the_same_function(
    block: onnx.ModelProto, feeds: dict[str, Array], formats: dict[str, QuantizedFormat]
) -> None:
    """Both in float32 and by one evaluator, so that the only difference is how they are written.

    They are equal bit by bit, not only to rounding: codes and scales are the same, and so are
    the products that they stand for.
    """
    layers, by_name = quantized(block, formats)
    device = ReferenceEvaluator(
        rewrite.device(block, layers, by_name), new_ops=[TRT_FP4DynamicQuantize]
    )
    emulation = ReferenceEvaluator(rewrite.emulation(block, layers, by_name))
    plain = ReferenceEvaluator(block).run(None, feeds)
    for one, other, exact in zip(
        device.run(None, feeds), emulation.run(None, feeds), plain, strict=True
    ):
        assert np.array_equal(one, other)
        assert not np.array_equal(one, exact), "nothing was quantized"


#: ONNX Runtime sums in another order than numpy: u·sqrt(K) is 2e-6 with K = 336, and a value
#: that falls on the other side of a rounding boundary moves by a step of its block. The error
#: is that of a few values in 10^5, by the norm.
RUNTIME_TOLERANCE = 1e-3


def test_onnx_runtime_runs_the_emulation(block: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    layers, by_name = quantized(block, MIXED)
    model = rewrite.emulation(block, layers, by_name)
    onnx.checker.check_model(model)
    wanted = ReferenceEvaluator(model).run(None, feeds)
    outputs = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    for ours, theirs in zip(outputs, wanted, strict=True):
        assert np.linalg.norm(ours - theirs) <= RUNTIME_TOLERANCE * np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def round_in_onnx_runtime() -> ort.InferenceSession:
    node = helper.make_node(
        rewrite.activation_function().name, ["x", "scale"], ["y"], domain=rewrite.EMULATION_DOMAIN
    )
    graph = helper.make_graph(
        [node],
        "round",
        [
            helper.make_tensor_value_info("x", 1, [1, "rows", "k"]),
            helper.make_tensor_value_info("scale", 1, []),
        ],
        [helper.make_tensor_value_info("y", 1, [1, "rows", "k"])],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(rewrite.EMULATION_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    model.functions.append(rewrite.activation_function())
    return ort.InferenceSession(model.SerializeToString())


@settings(max_examples=100, deadline=None)
@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.just(1), st.integers(1, 4), st.sampled_from([16, 48])),
        elements=st.one_of(
            st.floats(-(2.0**40), 2.0**40, width=32),
            st.sampled_from([0.0, -0.0, 0.25, 1.25, 5.0, 6.0, 1e-6, 2.0**-30]),
        ),
    ),
    amax=st.sampled_from([2.0**-20, 0.1, 1.0, 37.0, 2688.0, 2.0**40]),
)
def test_the_emulation_rounds_as_the_reference_does(
    round_in_onnx_runtime: ort.InferenceSession, x: Array, amax: float
) -> None:
    """Bit by bit, in the kernels that people will run: saturation, zeros and denormals too."""
    scale = nvfp4.global_scale(amax)
    (y,) = round_in_onnx_runtime.run(None, {"x": x, "scale": np.array(scale)})
    assert np.array_equal(y, nvfp4.dequantize(nvfp4.quantize_activation(x, scale)))


#: The layers that ModelOpt quantizes: those of the recipe `paper`. Our temporal convolution
#: is no module of a kind that it knows.
PAPER = ("attn1.*", "attn2.*", "ff.conv_inverted", "ff.conv_point")

#: Both sides sum in float32 in other orders, see RUNTIME_TOLERANCE.
MODELOPT_TOLERANCE = 1e-3


@pytest.fixture
def modelopt_on_a_cpu() -> Iterator[None]:
    """A CPU kernel for the operator that ModelOpt has for GPUs only, made of its own tensors."""

    def fake_quantize(x: Any, block: int, amax: Any, *formats: int) -> Any:
        assert formats == (4, 2, 8, 4), "E2M1 with E4M3 scales"
        scale = amax.float().max() / (6 * 448)
        packed, scales, _ = NVFP4QTensor.quantize(x.detach().clone(), block, None, scale)
        return packed.dequantize(
            torch.float32, scale=scales, double_scale=scale, block_sizes={-1: block}
        )

    library = torch.library.Library("tensorrt", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it takes the place of another one
        library.impl("dynamic_block_quantize_op", fake_quantize, "CPU", allow_override=True)
    yield
    library._destroy()


def fake_quantized(module: Block, inputs: list[torch.Tensor]) -> nn.Module:
    """The block with ModelOpt's quantizers, calibrated on ``inputs``."""
    for name in ("conv_inverted", "conv_point"):  # the 1x1 convolutions as what they compute
        conv = module.ff.get_submodule(name)
        linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
        linear.weight.data = conv.weight.data.flatten(1)
        if conv.bias is not None:
            linear.bias.data = conv.bias.data
        module.ff.register_module(name, linear)
    nvfp4_config = {
        "num_bits": (2, 1),
        "block_sizes": {-1: BLOCK, "type": "dynamic", "scale_bits": (4, 3)},
    }
    config = {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            *(
                {"quantizer_name": f"{pattern}*{kind}_quantizer", "cfg": nvfp4_config}
                for pattern in PAPER
                for kind in ("weight", "input")
            ),
        ],
        "algorithm": "max",
    }
    with torch.no_grad():
        return mtq.quantize(module, config, lambda model: model(*inputs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:modelopt")
@pytest.mark.usefixtures("modelopt_on_a_cpu")
def test_the_emulation_is_modelopts_fake_quantization(
    block_bundle: Path, block: onnx.ModelProto, feeds: dict[str, Array]
) -> None:
    spec = Bundle.open(block_bundle).manifest.model.transformer
    module = Block(spec)
    names = module.state_dict()
    prefix = "transformer_blocks.0."
    module.load_state_dict(
        {n: seeded_tensor(prefix + n, tuple(t.shape), 0) for n, t in names.items()}
    )
    inputs = [torch.from_numpy(value) for value in feeds.values()]
    oracle = fake_quantized(module, inputs)
    with torch.no_grad():
        wanted = [tensor.numpy() for tensor in oracle(*inputs)]

    layers = layers_of("block_00", block)
    taken = [each for each in layers if any(fnmatch.fnmatch(each.node, p) for p in PAPER)]
    assert len(taken) == 8
    by_name = {
        each.name: quantized_layer.quantize(
            each,
            graph_file.value(block, each.weight, Path()),
            "nvfp4",
            amax=float(oracle.get_submodule(each.node).input_quantizer.amax),
        )
        for each in taken
    }
    model = rewrite.emulation(block, layers, by_name)
    outputs = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    plain = ort.InferenceSession(block.SerializeToString()).run(None, feeds)
    update = np.linalg.norm(wanted[0] - feeds["tokens"])
    assert np.linalg.norm(outputs[0] - wanted[0]) <= MODELOPT_TOLERANCE * update
    assert np.linalg.norm(plain[0] - wanted[0]) > 10 * MODELOPT_TOLERANCE * update
    for ours, theirs in zip(outputs[1:], wanted[1:], strict=True):
        assert np.linalg.norm(ours - theirs) <= MODELOPT_TOLERANCE * np.linalg.norm(theirs)
