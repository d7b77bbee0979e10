"""Graphs for the engine tests, and the build logs ``*.log.xz`` that parsers are tested on.

The logs are complete ones of TensorRT-RTX for SM120. Those of real graphs are from full-width
plans; the others are of graphs made here:

    sana-rt bound --model sana-video-2b-480p --keep KEPT
    python tests/data/plan_logs/make.py KEPT
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
BLOCK = 16  # elements that share an E4M3 scale in NVFP4
E2M1_MAX, E4M3_MAX = 6.0, 448.0


def model(
    nodes: list[NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[TensorProto],
) -> ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("trt", 1)]
    return helper.make_model(graph, opset_imports=opsets)


def value(name: str, dtype: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def nvfp4_weights(name: str, weights: NDArray[np.float32]) -> list[TensorProto]:
    """Weights [n, k] as packed codes, a scale for each block of 16 along k, and one for all."""
    n, k = weights.shape
    blocks = weights.reshape(n, k // BLOCK, BLOCK)
    amax = np.abs(blocks).max(-1)
    overall = np.float32(amax.max() / (E2M1_MAX * E4M3_MAX))
    scales = (amax / E2M1_MAX / overall).astype(ml_dtypes.float8_e4m3fn)
    steps = scales.astype(np.float32) * overall
    codes = (blocks / steps[..., None]).astype(ml_dtypes.float4_e2m1fn).reshape(-1)
    nibbles = codes.view(np.uint8)
    packed = nibbles[0::2] | nibbles[1::2] << 4
    fp4, fp8 = TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FN
    return [
        helper.make_tensor(f"{name}.codes", fp4, [n, k], packed.tobytes(), raw=True),
        helper.make_tensor(f"{name}.scales", fp8, [n, k // BLOCK], scales.tobytes(), raw=True),
        helper.make_tensor(f"{name}.scale", TensorProto.FLOAT, [], [float(overall)]),
        helper.make_tensor(f"{name}.input_scale", TensorProto.FLOAT, [], [0.01]),
    ]


def nvfp4_matmul(name: str, source: str, target: str, dtype: int) -> list[NodeProto]:
    """``target = source @ weightsᵀ``, both operands NVFP4, as ModelOpt's exporter writes it."""
    node, block = helper.make_node, {"axis": -1, "block_size": BLOCK}
    n = f"{name}."
    return [
        node(
            "TRT_FP4DynamicQuantize",
            [source, f"{n}input_scale"],
            [f"{n}x_codes", f"{n}x_scales"],
            domain="trt",
            scale_type=TensorProto.FLOAT8E4M3FN,
            **block,
        ),
        node("DequantizeLinear", [f"{n}x_scales", f"{n}input_scale"], [f"{n}x_steps"]),
        node("DequantizeLinear", [f"{n}x_codes", f"{n}x_steps"], [f"{n}x_f32"], **block),
        node("Cast", [f"{n}x_f32"], [f"{n}x"], to=dtype),
        node("DequantizeLinear", [f"{n}scales", f"{n}scale"], [f"{n}w_steps"]),
        node("DequantizeLinear", [f"{n}codes", f"{n}w_steps"], [f"{n}w_f32"], **block),
        node("Cast", [f"{n}w_f32"], [f"{n}w"], to=dtype),
        node("Transpose", [f"{n}w"], [f"{n}w_t"], perm=[1, 0]),
        node("MatMul", [f"{n}x", f"{n}w_t"], [target], name=name),
    ]


def nvfp4_chain(width: int = 256, hidden: int = 768) -> ModelProto:
    """Two NVFP4 GEMMs, ``up`` and ``down``, with a ReLU between."""
    rng, dtype = np.random.default_rng(0), TensorProto.BFLOAT16
    up = rng.standard_normal((hidden, width), dtype=np.float32)
    down = rng.standard_normal((width, hidden), dtype=np.float32)
    return model(
        [
            *nvfp4_matmul("up", "x", "hidden", dtype),
            helper.make_node("Relu", ["hidden"], ["active"], name="act"),
            *nvfp4_matmul("down", "active", "y", dtype),
        ],
        [value("x", dtype, "batch", "frames", width)],
        [value("y", dtype, "batch", "frames", width)],
        [*nvfp4_weights("up", up), *nvfp4_weights("down", down)],
    )


def in_nvfp4(source: ModelProto) -> tuple[ModelProto, list[str]]:
    """``source`` with every MatMul by a constant in NVFP4, and the names of those MatMuls.

    The weights are rounded one by one; nothing is calibrated. It shows what a quantized graph
    compiles to, not how good it is.
    """
    constants = {tensor.name: tensor for tensor in source.graph.initializer}
    result = ModelProto()
    result.CopyFrom(source)
    del result.graph.node[:]
    replaced: dict[str, NodeProto] = {}
    for node in source.graph.node:
        weights = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weights is None or len(weights.dims) != 2 or weights.dims[0] % BLOCK:
            result.graph.node.append(node)
            continue
        values = numpy_helper.to_array(weights).astype(np.float32)
        result.graph.initializer.extend(nvfp4_weights(node.name, np.ascontiguousarray(values.T)))
        result.graph.node.extend(
            nvfp4_matmul(node.name, node.input[0], node.output[0], weights.data_type)
        )
        replaced[node.name] = node
    used = {name for node in result.graph.node for name in node.input}
    kept = [tensor for tensor in result.graph.initializer if tensor.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    del result.opset_import[:]
    result.opset_import.extend([helper.make_opsetid("", 23), helper.make_opsetid("trt", 1)])
    return result, list(replaced)


def linear(width: int = 64) -> ModelProto:
    """``relu(timestep @ w)``, the smallest graph with weights."""
    weights = np.random.default_rng(0).standard_normal((width, width), dtype=np.float32)
    return model(
        [
            helper.make_node("MatMul", ["timestep", "w"], ["product"], name="product"),
            helper.make_node("Relu", ["product"], ["modulation"], name="act"),
        ],
        [value("timestep", TensorProto.FLOAT, "batch", "frames", width)],
        [value("modulation", TensorProto.FLOAT, "batch", "frames", width)],
        [numpy_helper.from_array(weights, "w")],
    )


def branch() -> ModelProto:
    """A graph that compiles to jumps and copies: ``x @ w if condition else sin(x)``."""
    dtype = TensorProto.FLOAT
    weights = np.eye(8, dtype=np.float32)
    sides = {}
    for name, node in (
        ("then", helper.make_node("MatMul", ["x", "w"], ["then_out"])),
        ("else", helper.make_node("Sin", ["x"], ["else_out"])),
    ):
        output = helper.make_tensor_value_info(f"{name}_out", dtype, None)
        sides[f"{name}_branch"] = helper.make_graph([node], name, [], [output])
    return model(
        [helper.make_node("If", ["condition"], ["y"], **sides)],
        [value("x", dtype, "batch", 8), value("condition", TensorProto.BOOL)],
        [value("y", dtype, "batch", 8)],
        [numpy_helper.from_array(weights, "w")],
    )


def unsupported() -> ModelProto:
    """A graph with a node that TensorRT cannot import, named as the exporter does."""
    return model(
        [helper.make_node("Det", ["x"], ["y"], name="attn1.to_q/Det_0")],
        [value("x", TensorProto.FLOAT, "batch", "frames", 8, 8)],
        [value("y", TensorProto.FLOAT, "batch", "frames")],
        [],
    )


#: Real graphs whose logs are kept: linear and cross attention, and convolutions.
KEPT = ("block_00", "vae_decoder")


def main(kept: Path) -> None:
    """Write every ``*.log.xz``."""
    for name in KEPT:
        write_log(name, (kept / "plans" / f"{name}.log").read_bytes())
    shapes = {
        "nvfp4_chain": (nvfp4_chain(), {"x": (2, 512, 256)}),
        "branch": (branch(), {"x": (4, 8), "condition": ()}),
    }
    for name, (graph, inputs) in shapes.items():
        write_log(name, build_log(graph, inputs))


def build_log(graph: ModelProto, shapes: dict[str, tuple[int, ...]]) -> bytes:
    from sana_rt.engines import builder
    from sana_rt.engines.trt_api import BuildRequest, TensorRT

    tensorrt = TensorRT("rtx")
    fixed = {name: (shape, shape, shape) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        onnx.save(graph, path)
        request = BuildRequest(path, tensorrt.target("sm120"), fixed)
        built = builder.build_plan(request, path.with_suffix(".plan"), tensorrt, lambda _: None)
        return built.log.read_bytes()


def write_log(name: str, log: bytes) -> None:
    (HERE / f"{name}.log.xz").write_bytes(lzma.compress(log, preset=9))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
