"""Device and emulation graphs against onnx.reference, ONNX Runtime and ModelOpt."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
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
from torch import nn

from sana_rt.bundle import Bundle
from sana_rt.export.modules.block import Block, UnbiasedLinear
from sana_rt.export.seeded import seeded_tensor
from sana_rt.quantize import graph_file, modelopt_cpu, nvfp4, quantized_layer, rewrite
from sana_rt.quantize.layers import Layer, layers_of
from sana_rt.quantize.quantized_layer import QuantizedFormat, QuantizedLayer
from sana_rt.tensors import resolve

Array = npt.NDArray[Any]

UNIT_ROUNDOFF = 2.0**-24  # of float32

DIMS = {"batch": 2, "frames": 3, "rows": 2, "columns": 4, "length": 5}
MIXED: dict[str, QuantizedFormat] = {
    "attn1.to_v": "fp8",
    "attn1.to_out.0": "fp8",
    "attn2.to_q": "fp8",
}


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
    model: onnx.ModelProto,
    formats: dict[str, QuantizedFormat],
    scales: dict[str, list[float]] | None = None,
) -> tuple[tuple[Layer, ...], dict[str, QuantizedLayer]]:
    """All layers; ``scales`` are those of the channels of inputs."""
    layers = layers_of("block_00", model)
    return layers, {
        layer.name: quantized_layer.quantize(
            layer,
            graph_file.value(model, layer.weight, Path()),
            formats.get(layer.node, "nvfp4"),
            amax=4.0,
            channel_scales=(scales or {}).get(layer.input),
        )
        for layer in layers
    }


def random_scales(model: onnx.ModelProto) -> dict[str, list[float]]:
    """Scales from 1/4 to 4 for the channels of every layer's input, as AWQ gives them."""
    random = np.random.default_rng(0)
    return {
        layer.input: (2 ** random.uniform(-2, 2, layer.shape[0]))
        .astype(ml_dtypes.bfloat16)
        .astype(float)
        .tolist()
        for layer in layers_of("block_00", model)
    }


def test_a_block_has_ten_layers(block: onnx.ModelProto) -> None:
    assert len(layers_of("block_00", block)) == 10


def unquantized(node: onnx.NodeProto, names: set[str]) -> onnx.NodeProto:
    """The node without its two operands, if it is the product of one of the layers ``names``."""
    kept = onnx.NodeProto()
    kept.CopyFrom(node)
    if node.name in names:
        del kept.input[:2]
    return kept


@pytest.mark.parametrize("form", [rewrite.device, rewrite.emulation], ids=["device", "emulation"])
def test_nothing_changes_but_the_operands_of_layers(
    block: onnx.ModelProto, form: Callable[..., onnx.ModelProto]
) -> None:
    """So two forms whose layers compute the same compute the same."""
    layers, by_name = quantized(block, MIXED, random_scales(block))
    names = {layer.node for layer in layers}
    before = [unquantized(node, names) for node in block.graph.node]
    there = {node.name for node in before}
    rewritten = form(block, layers, by_name).graph
    after = [unquantized(node, names) for node in rewritten.node if node.name in there]
    assert after == before
    assert list(rewritten.input) == list(block.graph.input)
    assert list(rewritten.output) == list(block.graph.output)


def values(
    model: onnx.ModelProto, wanted: list[str], feeds: dict[str, Array], *operators: type
) -> list[Array]:
    """What the graph computes for ``wanted``, given the values of any of its tensors."""
    makers = {name: node for node in model.graph.node for name in node.output}
    open_names, needed = list(wanted), set()
    while open_names:
        name = open_names.pop()
        if name in makers and name not in feeds and makers[name].name not in needed:
            needed.add(makers[name].name)
            open_names.extend(makers[name].input)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:]
    part.graph.node.extend(node for node in model.graph.node if node.name in needed)
    part.graph.input.extend(helper.make_empty_tensor_value_info(name) for name in feeds)
    part.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    return ReferenceEvaluator(part, new_ops=list(operators)).run(None, feeds)


def rounding_of_sums(terms: int) -> float:
    """How far two sums of ``terms`` float32 products are apart, of the sum of magnitudes.

    Each is within gamma_K = K u / (1 - K u) of the exact sum in whatever order it is taken,
    fused or not (Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.4 and 3.5).
    """
    total = terms * UNIT_ROUNDOFF
    return 2 * total / (1 - total)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("formats", [{}, MIXED], ids=["max", "mixed"])
def test_device_and_emulation_are_the_same_function(
    block: onnx.ModelProto,
    feeds: dict[str, Array],
    formats: dict[str, QuantizedFormat],
    scaled: bool,
    fp4_dynamic_quantize: type,
) -> None:
    """Both in float32 and by one evaluator, every layer given the same input.

    The two operands are equal bit by bit: codes and scales are the same, and so is what they
    stand for. The weight of the device's graph is a transposed view, and a BLAS may sum its
    products in another order than those of the emulation's.
    """
    layers, by_name = quantized(block, formats, random_scales(block) if scaled else None)
    given = dict(
        zip(
            names := sorted({layer.input for layer in layers}),
            values(block, names, feeds),
            strict=True,
        )
    )
    device = rewrite.device(block, layers, by_name)
    emulation = rewrite.emulation(block, layers, by_name)
    for layer in layers:
        x = {layer.input: given[layer.input]}
        (exact,) = values(block, [layer.output], x)
        (one, w, y), (other, v, z) = (
            values(model, [*product(model, layer), layer.output], x, fp4_dynamic_quantize)
            for model in (device, emulation)
        )
        assert np.array_equal(one, other), layer.node
        assert np.array_equal(w, v), layer.node
        magnitudes = np.abs(one).astype(np.float64) @ np.abs(w).astype(np.float64)
        tolerance = rounding_of_sums(layer.shape[0]) * magnitudes
        assert np.all(np.abs(y - z) <= tolerance), layer.node
        assert np.any(np.abs(y - exact) > tolerance), f"{layer.node} is not quantized"


def product(model: onnx.ModelProto, layer: Layer) -> list[str]:
    """The operands of the layer's matrix product."""
    (node,) = (each for each in model.graph.node if each.name == layer.node)
    assert node.op_type == "MatMul"
    return list(node.input)


def test_layers_that_share_an_input_share_its_scales(block: onnx.ModelProto) -> None:
    """One multiplication and one quantization for q, k and v; another scale is another one."""
    scales = random_scales(block)
    layers, by_name = quantized(block, {}, scales)
    for form in (rewrite.device, rewrite.emulation):
        nodes = form(block, layers, by_name).graph.node
        scaled = [node for node in nodes if node.name.endswith("/scaled_input")]
        assert {node.op_type for node in scaled} == {"Mul"}
        assert len(scaled) == len(scales) == 8
    other = quantized_layer.quantize(
        layers[0],
        graph_file.value(block, layers[0].weight, Path()),
        "nvfp4",
        amax=4.0,
        channel_scales=[1.0] * layers[0].shape[0],
    )
    nodes = rewrite.device(block, layers, by_name | {layers[0].name: other}).graph.node
    assert sum(node.op_type == "TRT_FP4DynamicQuantize" for node in nodes) == 9


def test_scales_without_rounding_change_nothing(
    block: onnx.ModelProto, feeds: dict[str, Array]
) -> None:
    """In exact arithmetic input times scale by weight over scale is input by weight.

    Powers of two commute with rounding to E4M3 and E2M1 but for the ends of their ranges.
    """
    layers, plain = quantized(block, {})
    doubled = {layer.input: [2.0] * layer.shape[0] for layer in layers}
    by_name = {
        layer.name: quantized_layer.quantize(
            layer,
            graph_file.value(block, layer.weight, Path()),
            "nvfp4",
            amax=8.0,
            channel_scales=doubled[layer.input],
        )
        for layer in layers
    }
    outputs = [
        ReferenceEvaluator(rewrite.emulation(block, layers, made)).run(None, feeds)
        for made in (plain, by_name)
    ]
    for one, other in zip(*outputs, strict=True):
        assert np.array_equal(one, other)


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


def fake_quantized(module: Block, inputs: list[torch.Tensor]) -> nn.Module:
    """The block with ModelOpt's quantizers, calibrated on ``inputs``."""
    for name in ("conv_inverted", "conv_point"):  # the 1x1 convolutions as what they compute
        conv = module.ff.get_submodule(name)
        linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
        linear.weight.data = conv.weight.data.flatten(1)
        if conv.bias is not None:
            linear.bias.data = conv.bias.data
        module.ff.register_module(name, linear)
    registry = modelopt_cpu.mtq.nn.QuantModuleRegistry
    if UnbiasedLinear not in registry:
        registry.register({UnbiasedLinear: "UnbiasedLinear"})(registry[nn.Linear])
    config = {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            *(
                {"quantizer_name": f"{pattern}*{kind}_quantizer", "cfg": modelopt_cpu.NVFP4}
                for pattern in PAPER
                for kind in ("weight", "input")
            ),
        ],
        "algorithm": "max",
    }
    with torch.no_grad():
        return modelopt_cpu.mtq.quantize(module, config, lambda model: model(*inputs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:modelopt")
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
