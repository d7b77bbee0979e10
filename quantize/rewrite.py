"""Quantized layers put into a graph: in the device's operators, or in standard ones.

Both forms say the same; the first is what TensorRT compiles, the second what any CPU runs.
Weights of the second hold the values that the first's packed weights stand for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from sana_rt.quantize.layers import Layer
from sana_rt.quantize.minifloat import E2M1, Float32Array
from sana_rt.quantize.nvfp4 import BLOCK, NVFP4Tensor
from sana_rt.quantize.quantized_layer import FP8Tensor, QuantizedLayer

TRT_DOMAIN: Final = "trt"
EMULATION_DOMAIN: Final = "sana_rt.emulation"
_EMULATE: Final = "NVFP4Activation"
_OPSET: Final = 23  # the first with FLOAT4E2M1 in DequantizeLinear

_E4M3: Final = TensorProto.FLOAT8E4M3FN
_E2M1: Final = TensorProto.FLOAT4E2M1


def device(
    model: ModelProto, layers: Sequence[Layer], quantized: Mapping[str, QuantizedLayer]
) -> ModelProto:
    """The graph for TensorRT: weights as packed bits, inputs quantized where they are needed.

    ``quantized`` is by the name of a layer. What reads the same input in the same way shares
    one quantization.
    """
    return _rewrite(model, layers, quantized, _Device)


def emulation(
    model: ModelProto, layers: Sequence[Layer], quantized: Mapping[str, QuantizedLayer]
) -> ModelProto:
    """The graph in standard operators and float32, with the same rounding as the device's."""
    out = _rewrite(model, layers, quantized, _Emulation)
    if any(node.domain == EMULATION_DOMAIN for node in out.graph.node):
        out.functions.append(activation_function())
        out.opset_import.append(helper.make_opsetid(EMULATION_DOMAIN, 1))
    return out


def _rewrite(
    model: ModelProto,
    layers: Sequence[Layer],
    quantized: Mapping[str, QuantizedLayer],
    form: Callable[[GraphProto], _Form],
) -> ModelProto:
    out = ModelProto()
    out.CopyFrom(model)
    writer = form(out.graph)
    by_node = {layer.node: layer for layer in layers if layer.name in quantized}
    nodes = list(out.graph.node)
    del out.graph.node[:]
    for node in nodes:
        if node.name in by_node:
            layer = by_node[node.name]
            writer.quantize(node, layer, quantized[layer.name])
        out.graph.node.append(node)
    _drop_unused(out.graph)
    if any(node.domain == TRT_DOMAIN for node in out.graph.node):
        out.opset_import.append(helper.make_opsetid(TRT_DOMAIN, 1))
    return out


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


class _Form(ABC):
    """Writes the nodes around a MatMul, in front of it."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._dtype = {each.name: each.data_type for each in graph.initializer}
        self._scaled: dict[tuple[str, bytes], str] = {}
        self._inputs: dict[tuple[str, str, float], str] = {}

    def quantize(self, node: NodeProto, layer: Layer, quantized: QuantizedLayer) -> None:
        """Let ``node`` multiply the quantized input by the quantized weight."""
        dtype = self._dtype[layer.weight]
        if quantized.channel_scales is not None:
            layer = replace(layer, input=self._scale(layer, quantized.channel_scales, dtype))
        key = (layer.input, quantized.format, float(quantized.input_scale))
        if key not in self._inputs:
            write = self._input_fp4 if quantized.format == "nvfp4" else self._input_fp8
            self._inputs[key] = write(layer, quantized.input_scale, dtype)
        node.input[0] = self._inputs[key]
        node.input[1] = self._weight(layer, quantized, dtype)

    def _scale(self, layer: Layer, scales: Float32Array, dtype: int) -> str:
        """Multiply the channels of the layer's input; the name of the result."""
        key = (layer.input, scales.tobytes())
        if key not in self._scaled:
            name = f"{layer.node}/scaled_input"
            factors = self._constant(f"{layer.node}/channel_scales", scales, dtype)
            self._scaled[key] = self._node("Mul", [layer.input, factors], name)
        return self._scaled[key]

    def _input_fp8(self, layer: Layer, scale: np.float32, dtype: int) -> str:
        name = f"{layer.node}/input"
        scales = self._constant(f"{name}_scale", scale, dtype)
        zero = self._raw(f"{name}_zero", _E4M3, (), b"\0")
        codes = self._node("QuantizeLinear", [layer.input, scales, zero], f"{name}_codes")
        return self._node("DequantizeLinear", [codes, scales], name)

    @abstractmethod
    def _input_fp4(self, layer: Layer, scale: np.float32, dtype: int) -> str:
        """Quantize and dequantize the layer's input; the name of the result."""

    @abstractmethod
    def _weight(self, layer: Layer, quantized: QuantizedLayer, dtype: int) -> str:
        """The name of the weight's values [K, N]."""

    def _node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = helper.make_node(op_type, inputs, [output], name=output, **attributes)
        self._graph.node.append(node)
        return output

    def _constant(self, name: str, value: npt.ArrayLike, dtype: int) -> str:
        array = np.asarray(value).astype(helper.tensor_dtype_to_np_dtype(dtype))
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _raw(self, name: str, dtype: int, shape: Sequence[int], data: bytes) -> str:
        self._graph.initializer.append(
            TensorProto(name=name, data_type=dtype, dims=shape, raw_data=data)
        )
        return name


class _Device(_Form):
    """Packed weights and dynamic quantization, with scales of two levels.

    Scales are float32, as the format has them; the cast to the graph's type comes after the
    multiplication by the scale, where TensorRT folds it into the matrix product. A cast in
    front of the quantization would be a pass over the activations of its own.
    """

    def _input_fp4(self, layer: Layer, scale: np.float32, dtype: int) -> str:
        name = f"{layer.node}/input"
        level = self._constant(f"{name}_global_scale", scale, TensorProto.FLOAT)
        self._graph.node.append(
            helper.make_node(
                "TRT_FP4DynamicQuantize",
                [layer.input, level],
                [f"{name}_codes", f"{name}_block_scales"],
                name=f"{name}_codes",
                domain=TRT_DOMAIN,
                axis=-1,
                block_size=BLOCK,
                scale_type=_E4M3,
            )
        )
        return self._dequantize(name, f"{name}_codes", f"{name}_block_scales", level, dtype)

    def _weight(self, layer: Layer, quantized: QuantizedLayer, dtype: int) -> str:
        name = f"{layer.node}/weight"
        weight = quantized.weight
        if isinstance(weight, FP8Tensor):
            codes = self._raw(f"{name}_codes", _E4M3, weight.codes.shape, weight.codes.tobytes())
            scale = self._constant(f"{name}_scale", weight.scale, dtype)
            return self._node("DequantizeLinear", [codes, scale], name)
        values = self._packed(name, weight, dtype)
        return self._node("Transpose", [values], f"{name}_transposed", perm=[1, 0])

    def _packed(self, name: str, weight: NVFP4Tensor, dtype: int) -> str:
        codes = self._raw(f"{name}_codes", _E2M1, weight.shape, weight.codes.tobytes())
        scales = weight.block_scales
        blocks = self._raw(f"{name}_block_scales", _E4M3, scales.shape, scales.tobytes())
        level = self._constant(f"{name}_global_scale", weight.global_scale, TensorProto.FLOAT)
        return self._dequantize(name, codes, blocks, level, dtype)

    def _dequantize(self, name: str, codes: str, blocks: str, level: str, dtype: int) -> str:
        steps = self._node("DequantizeLinear", [blocks, level], f"{name}_steps")
        exact = dtype == TensorProto.FLOAT
        values = self._node(
            "DequantizeLinear",
            [codes, steps],
            name if exact else f"{name}_f32",
            axis=-1,
            block_size=BLOCK,
        )
        return values if exact else self._node("Cast", [values], name, to=dtype)


class _Emulation(_Form):
    """Weights as the values of their codes, and inputs rounded by a function of the graph."""

    def _input_fp4(self, layer: Layer, scale: np.float32, dtype: int) -> str:
        name = f"{layer.node}/input"
        level = self._constant(f"{name}_global_scale", scale, dtype)
        return self._node(_EMULATE, [layer.input, level], name, domain=EMULATION_DOMAIN)

    def _weight(self, layer: Layer, quantized: QuantizedLayer, dtype: int) -> str:
        return self._constant(f"{layer.node}/weight", quantized.dequantized(), dtype)


def activation_function() -> FunctionProto:
    """``NVFP4Activation(x [B, N, K], scale) -> y``: quantize and dequantize in float32.

    E2M1's steps are 1/2 below 2, 1 below 4 and 2 up to 6; on each stretch, rounding ties to
    even multiples of the step is rounding ties to even codes.
    """
    text = f"""
    <opset_import: ["" : {_OPSET}], domain: "{EMULATION_DOMAIN}">
    {_EMULATE} (x, scale) => (y)
    {{
        zero = Constant <value_float = 0.0> ()
        half = Constant <value_float = 0.5> ()
        one = Constant <value_float = 1.0> ()
        two = Constant <value_float = 2.0> ()
        four = Constant <value_float = 4.0> ()
        most = Constant <value_float = {E2M1.max}> ()
        last = Constant <value_ints = [-1]> ()
        cut = Constant <value_ints = [0, 0, -1, {BLOCK}]> ()
        joined = Constant <value_ints = [0, 0, -1]> ()
        blocks = Reshape (x, cut)
        magnitudes = Abs (blocks)
        amax = ReduceMax <keepdims = 1> (magnitudes, last)
        largest = Mul (most, scale)
        wanted = Div (amax, largest)
        codes = Cast <to = {_E4M3}, saturate = 1> (wanted)
        scales = Cast <to = {TensorProto.FLOAT}> (codes)
        steps = Mul (scales, scale)
        unused = Equal (steps, zero)
        divisors = Where (unused, one, steps)
        scaled = Div (magnitudes, divisors)
        clamped = Min (scaled, most)
        below_four = Less (clamped, four)
        below_two = Less (clamped, two)
        coarse = Where (below_four, one, two)
        grid = Where (below_two, half, coarse)
        counted = Div (clamped, grid)
        counts = Round (counted)
        rounded = Mul (counts, grid)
        values = Mul (rounded, steps)
        signs = Sign (blocks)
        signed = Mul (values, signs)
        y = Reshape (signed, joined)
    }}
    """
    return onnx.parser.parse_function(text)
