"""The bfloat16 graph that TensorRT is given, against the float32 emulation of it.

The two round at different places, and FP4 makes much of little: an activation that moved by a
rounding of bfloat16 may get another code, and then moves by a whole step. How much that is follows
from the formats; what is more is a mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from sana_rt.bundle import Bundle
from sana_rt.quantize import graph_file, quantized_layer, rewrite
from sana_rt.quantize.layers import Layer, layers_of
from sana_rt.quantize.nvfp4 import NVFP4Tensor
from sana_rt.quantize.quantized_layer import QuantizedFormat, QuantizedLayer
from sana_rt.tensors import resolve

Array = npt.NDArray[Any]
Fault = Callable[[QuantizedLayer], QuantizedLayer]

DIMS = {"batch": 2, "frames": 3, "rows": 4, "columns": 4, "length": 5}
MIXED: dict[str, QuantizedFormat] = {
    "attn1.to_v": "fp8",
    "attn1.to_out.0": "fp8",
    "attn2.to_q": "fp8",
}

#: One rounding to bfloat16, by the norm. Values are 2^-7 apart at 1, so the error is 2^-7/sqrt(12)
#: of the power of two below a value, and on average over a binade 0.85 x 2^-9 of the value.
ROUNDING = 2.0**-9
#: Inside a layer: the input's values, the weight's values and the output are cast to bfloat16.
#: (TensorRT multiplies codes; it has only the last one.)
ROUNDINGS_OF_A_LAYER = 3
#: In front of the first: the normalised tokens, their product with the scale, and the shift.
ROUNDINGS_BEFORE_THE_FIRST = 3


@dataclass(frozen=True)
class Flips:
    """What becomes of a tensor x that moves by a small part e of its norm, when it is quantized.

    A value v that moves by d falls on the other side of a boundary with the probability |d|/step
    and then moves by ``step``: of the squared norm, that is at most e times the largest
    step/|v|, the first part of ``rate``. If a block's scale falls on the other side (its values
    are 1/16 or more apart), all 16 values are rounded anew, which gives the second. However far x
    moves, two roundings are no further apart than independent ones: ``most`` is twice the
    largest step^2/12 of v^2. ``roundings`` to bfloat16 are between the layer's input and the
    quantization.
    """

    rate: float
    most: float
    roundings: int

    def tolerance(self, moved: float) -> float:
        """How far the layer's output may be off, if its input is by ``moved``, by the norm."""
        moved += self.roundings * ROUNDING
        flipped = math.sqrt(min(self.rate * moved, self.most))
        return moved + flipped + ROUNDINGS_OF_A_LAYER * ROUNDING


FLIPS: dict[QuantizedFormat, Flips] = {
    # E2M1: from 1 to 6 a step is at most v/2. The values below 1 have steps of 1/2; if 15 of 16
    # are just there, a block's mean of step/|v|, weighted by v^2, is 0.54, and never larger.
    # Of the scale: 2 * 1/48 in a block, with the probability of e / (1/16).
    "nvfp4": Flips(rate=0.54 + 2 / 48 * 16, most=2 / 48, roundings=0),
    # E4M3: a step is at most v/8; there is one scale, and it does not depend on x. QuantizeLinear
    # divides by it in the scale's type, bfloat16.
    "fp8": Flips(rate=1 / 8, most=2 / 8**2 / 12, roundings=1),
}
#: What no rounding explains: the least of the faults below is 2.4 tolerances off.
CLEAR = 2.0


@dataclass(frozen=True, eq=False)
class Graphs:
    """A block in both forms, its layers, and what the float32 form makes of the same inputs."""

    bfloat16: onnx.ModelProto
    float32: onnx.ModelProto
    layers: tuple[Layer, ...]
    feeds: Mapping[str, Array]  # as the bfloat16 graph takes them
    operator: type

    def values(self, model: onnx.ModelProto) -> dict[str, Array]:
        """All outputs, and what goes into the layers and comes out of them, in float64."""
        model = onnx.ModelProto.FromString(model.SerializeToString())
        there = {value.name for value in (*model.graph.output, *model.graph.input)}
        names = {name for layer in self.layers for name in (layer.input, layer.output)}
        watched = [helper.make_empty_tensor_value_info(each) for each in sorted(names - there)]
        model.graph.output.extend(watched)
        types = {
            each.name: helper.tensor_dtype_to_np_dtype(each.type.tensor_type.elem_type)
            for each in model.graph.input
        }
        feeds = {name: value.astype(types[name]) for name, value in self.feeds.items()}
        evaluator = ReferenceEvaluator(model, new_ops=[self.operator])
        outputs = evaluator.run(None, feeds)
        named = dict(zip(evaluator.output_names, outputs, strict=True))
        return {name: value.astype(np.float64) for name, value in (feeds | named).items()}

    @cached_property
    def plain(self) -> dict[str, Array]:
        """What the float32 graph makes of them with nothing quantized."""
        return self.values(self.float32)

    def quantize(self, formats: Mapping[str, QuantizedFormat]) -> dict[str, QuantizedLayer]:
        """The layers that ``formats`` names, their inputs calibrated on what they are given."""
        return {
            layer.name: quantized_layer.quantize(
                layer,
                graph_file.value(self.float32, layer.weight, Path()),
                formats[layer.node],
                amax=float(np.abs(self.plain[layer.input]).max()),
            )
            for layer in self.layers
            if layer.node in formats
        }

    def device(self, quantized: Mapping[str, QuantizedLayer]) -> dict[str, Array]:
        return self.values(rewrite.device(self.bfloat16, self.layers, quantized))

    def emulation(self, quantized: Mapping[str, QuantizedLayer]) -> dict[str, Array]:
        return self.values(rewrite.emulation(self.float32, self.layers, quantized))


@pytest.fixture(scope="module")
def graphs(block_bundle: Path, fp4_dynamic_quantize: type) -> Graphs:
    bundle = Bundle.open(block_bundle)
    models = {
        name: onnx.load(bundle.path(variant.graphs["block_00"].path))
        for name, variant in bundle.manifest.variants.items()
    }
    inputs = bundle.manifest.variant("bf16").graphs["block_00"].inputs
    random = np.random.default_rng(0)
    feeds = {
        each.name: random.standard_normal(resolve(each.shape, DIMS), np.float32) for each in inputs
    }
    feeds["text_bias"] *= 0
    feeds["text_k"] /= math.sqrt(bundle.manifest.model.transformer.cross_head_dim)
    feeds["state_k"] = np.abs(feeds["state_k"])
    for each in models["bf16"].graph.input:  # so that both graphs are given the same
        dtype = helper.tensor_dtype_to_np_dtype(each.type.tensor_type.elem_type)
        feeds[each.name] = feeds[each.name].astype(dtype)
    layers = layers_of("block_00", models["fp32"])
    assert layers == layers_of("block_00", models["bf16"])
    return Graphs(models["bf16"], models["fp32"], layers, feeds, fp4_dynamic_quantize)


def distance(ours: Array, wanted: Array) -> float:
    return float(np.linalg.norm(ours - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def moved(graphs: Graphs) -> dict[str, float]:
    """How far bfloat16 alone moves the input of every layer; nothing is quantized."""
    ours, wanted = graphs.values(graphs.bfloat16), graphs.plain
    return {each.node: distance(ours[each.input], wanted[each.input]) for each in graphs.layers}


def test_the_first_layers_are_given_what_few_roundings_make(moved: dict[str, float]) -> None:
    for node in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
        assert 0 < moved[node] <= ROUNDINGS_BEFORE_THE_FIRST * ROUNDING
    assert moved["ff.conv_temp.1"] == 0, "its input is an input of the graph"


@pytest.mark.parametrize("fmt", ["nvfp4", "fp8"])
def test_a_layer_alone_is_off_by_roundings_and_flips(
    graphs: Graphs, moved: dict[str, float], fmt: QuantizedFormat
) -> None:
    """In front of it both graphs are plain, so ``moved`` comes from bfloat16 and nothing else."""
    for layer in graphs.layers:
        quantized = graphs.quantize({layer.node: fmt})
        device, emulation = graphs.device(quantized), graphs.emulation(quantized)
        off = distance(device[layer.output], emulation[layer.output])
        assert off <= FLIPS[fmt].tolerance(moved[layer.node]), layer.node
        assert distance(emulation[layer.output], graphs.plain[layer.output]) > 2 * ROUNDING


@pytest.mark.parametrize("formats", [{}, MIXED], ids=["max", "mixed"])
def test_in_a_whole_block_every_layer_adds_no_more_than_its_flips(
    graphs: Graphs, formats: dict[str, QuantizedFormat]
) -> None:
    """What one layer flips moves the next one's input, until the roundings are independent.

    So the block's outputs are apart by a good part of what quantization costs, and by no more
    than two independent quantizations: sqrt(2) times that, and bfloat16's own error.
    """
    chosen = {layer.node: formats.get(layer.node, "nvfp4") for layer in graphs.layers}
    quantized = graphs.quantize(chosen)
    device, emulation = graphs.device(quantized), graphs.emulation(quantized)
    for layer in graphs.layers:
        given = distance(device[layer.input], emulation[layer.input])
        off = distance(device[layer.output], emulation[layer.output])
        assert off <= FLIPS[chosen[layer.node]].tolerance(given), layer.node
    plain, bfloat16 = graphs.plain, graphs.values(graphs.bfloat16)
    for output in ("tokens_out", "state_s_out", "state_k_out", "state_z_out"):
        cost = distance(emulation[output], plain[output])
        off = distance(device[output], emulation[output])
        assert off <= math.sqrt(2) * cost + distance(bfloat16[output], plain[output])


def edited(layer: QuantizedLayer, **changes: Any) -> QuantizedLayer:
    assert isinstance(layer.weight, NVFP4Tensor)
    return replace(layer, weight=replace(layer.weight, **changes))


FAULTS: dict[str, Fault] = {
    "the second code in the low half": lambda layer: edited(
        layer, codes=(layer.weight.codes << 4) | (layer.weight.codes >> 4)
    ),
    "the weight's global scale twice as large": lambda layer: edited(
        layer, global_scale=2 * layer.weight.global_scale
    ),
    "the scales of the next blocks": lambda layer: edited(
        layer, block_scales=np.roll(layer.weight.block_scales, 1, axis=0)
    ),
    "the input's global scale an eighth": lambda layer: replace(
        layer, input_scale=layer.input_scale / 8
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_off_by_more(graphs: Graphs, moved: dict[str, float], fault: Fault) -> None:
    for layer in graphs.layers:
        quantized = graphs.quantize({layer.node: "nvfp4"})
        emulation = graphs.emulation(quantized)
        device = graphs.device({name: fault(each) for name, each in quantized.items()})
        off = distance(device[layer.output], emulation[layer.output])
        assert off > CLEAR * FLIPS["nvfp4"].tolerance(moved[layer.node]), layer.node
