"""A full-width block compiled for the RTX 5090: what became FP4, and the bound on its time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from sana_rt.benchmarks import bound, presets, random_bundle, roofline
from sana_rt.benchmarks.roofline import Row
from sana_rt.engines import builder, plan_table, profiles
from sana_rt.engines.trt_api import TARGETS, Request, TensorRT
from sana_rt.export.graphs import transformer_graphs
from sana_rt.export.onnx_export import TRACE_SIZES, write_graph
from sana_rt.export.trace import trace
from sana_rt.manifest import Graph
from sana_rt.model_spec import PRESETS
from sana_rt.quantize import graph_file
from sana_rt.quantize.layers import layers_of

pytest.importorskip("tensorrt_rtx")

MODEL = PRESETS["sana-video-2b-720p-dcaev"]
DEVICE = presets.device("rtx5090")
#: Seconds: 20 blocks, 50 steps, both halves of guidance. The FLOPs alone take 4.6.
BOUND = 10.0
#: The same in bfloat16, of a block written without regard to what TensorRT fuses: q, k and v in
#: one product, a depthwise convolution between transposes, the temporal one on a concatenation.
PLAIN_BOUND = 40.4


@dataclass(frozen=True)
class Block:
    """The bfloat16 block of the model, and its layers."""

    graph: Graph
    path: Path
    layers: frozenset[str]

    def compile(self, recipe: str, folder: Path) -> tuple[Row, ...]:
        """The kernels of its plan for 18,480 tokens, twice."""
        path = bound.RECIPES[recipe](self.path, folder)
        spans = profiles.profile(bound.BLOCK, self.graph, MODEL, bound.workload(MODEL))
        shapes = builder.input_shapes(self.graph.inputs, spans)
        request = Request(path, TARGETS["sm120"], shapes)
        built = builder.build_plan(request, folder / "plan", TensorRT("rtx"), lambda _: None)
        return roofline.rows(plan_table.read(built.log))


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Block:
    folder = tmp_path_factory.mktemp("full") / "bf16"
    one = random_bundle.with_layers(MODEL, blocks=1, text=1)
    definition = next(
        each for each in transformer_graphs(one, "bfloat16") if each.name == bound.BLOCK
    )
    topology = trace(definition, TRACE_SIZES.dims(one))
    graph = write_graph(topology, definition, random_bundle.random_weights(definition), folder)
    path = folder.parent / graph.path
    layers = layers_of(bound.BLOCK, graph_file.read(path))
    return Block(graph, path, frozenset(layer.node for layer in layers))


def in_fp4(rows: tuple[Row, ...], layers: frozenset[str]) -> set[str]:
    """The layers that are computed by a GEMM of FP4 operands."""
    return {
        node
        for row in rows
        if row.work.op_class == "gemm" and row.work.dtype == bound.FP4
        for node in row.kernel.nodes
        if node in layers
    }


def test_bfloat16_is_no_worse_than_a_block_written_plainly(block: Block, tmp_path: Path) -> None:
    rows = block.compile("bf16", tmp_path)
    assert not in_fp4(rows, block.layers)
    assert {row.work.dtype for row in rows if row.work.op_class == "gemm"} == {"bfloat16"}
    seconds = sum(row.work.seconds(DEVICE) for row in rows)
    assert seconds * 20 * 50 <= PLAIN_BOUND


def test_max_compiles_to_fp4_and_is_bounded_by_ten_seconds(block: Block, tmp_path: Path) -> None:
    rows = block.compile("max", tmp_path)
    assert len(block.layers) == 10
    assert in_fp4(rows, block.layers) == block.layers
    flops = {"fp4": 0, "all": 0}
    for row in rows:
        flops["all"] += row.work.flops
        flops["fp4"] += row.work.flops if row.work.dtype == bound.FP4 else 0
    assert flops["fp4"] / flops["all"] > 0.97
    seconds = sum(row.work.seconds(DEVICE) for row in rows)
    assert seconds * 20 * 50 <= BOUND


def test_paper_leaves_the_temporal_convolution_in_bfloat16(block: Block, tmp_path: Path) -> None:
    rows = block.compile("paper", tmp_path)
    temporal = {"ff.conv_temp", "ff.conv_temp.1"}
    assert in_fp4(rows, block.layers) == block.layers - temporal
