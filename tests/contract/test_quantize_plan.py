"""A full-width block compiled for the RTX 5090: what became FP4, and the bound on its time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sana_rt import graph_names
from sana_rt.benchmarks import bound, random_bundle
from sana_rt.engines import builder, cards, plan_table, profiles, roofline
from sana_rt.engines.cards import TARGETS
from sana_rt.engines.roofline import Row
from sana_rt.engines.trt_api import BuildRequest, TensorRT
from sana_rt.export.graphs import transformer_graphs
from sana_rt.export.onnx_export import TRACE_SIZES, write_graph
from sana_rt.export.trace import trace
from sana_rt.manifest import Graph
from sana_rt.model_spec import PRESETS
from sana_rt.quantize import graph_file, quantized_layer, rewrite
from sana_rt.quantize import recipe as recipes
from sana_rt.quantize.layers import layers_of

pytest.importorskip("tensorrt_rtx")

MODEL = PRESETS["sana-video-2b-720p-dcaev"]
BLOCK = graph_names.block(0)
CARD = cards.card("rtx5090")
FP8 = "float8_e4m3fn"
#: Seconds: 20 blocks, 50 steps, both halves of guidance. The FLOPs alone take 4.6.
BOUND = 10.0
#: The same with the channels of all inputs scaled.
SCALED_BOUND = 10.3
#: The same in bfloat16, of a block written without regard to what TensorRT fuses: q, k and v in
#: one product, a depthwise convolution between transposes, the temporal one on a concatenation.
PLAIN_BOUND = 40.4


@dataclass(frozen=True)
class Block:
    """The bfloat16 block of the model, and its layers."""

    graph: Graph
    path: Path
    layers: frozenset[str]

    def compile(self, recipe: str, folder: Path, name: str = BLOCK) -> tuple[Row, ...]:
        """The kernels of the plan that the block ``name`` of 20 has for 18,480 tokens, twice."""
        rules = recipes.resolve(
            (recipes.load(recipe) if recipe else recipes.UNQUANTIZED).recipe, self._model()
        )
        return self.plan(bound.quantized(rules, name, self.path, folder), folder)

    def plan(self, path: Path, folder: Path) -> tuple[Row, ...]:
        """The kernels of the plan of a graph that was made of the block."""
        spans = profiles.profile(BLOCK, self.graph, MODEL, bound.workload(MODEL))
        shapes = builder.input_shapes(self.graph.inputs, spans)
        request = BuildRequest(path, TARGETS["sm120"], shapes)
        built = builder.build_plan(request, folder / "plan", TensorRT("rtx"), lambda _: None)
        return roofline.rows(plan_table.read(built.log))

    def _model(self) -> list[str]:
        """The layers that recipes know of."""
        text = [f"prompt/transformer_blocks.0.attn2.to_{name}" for name in "kv"]
        return text + [f"block_{i:02d}/{layer}" for i in range(20) for layer in self.layers]


def in_format(rows: tuple[Row, ...], layers: frozenset[str], dtype: str) -> set[str]:
    """The layers that are computed by a GEMM of operands of one type."""
    return {
        node
        for row in rows
        if row.work.op_class == "gemm" and row.work.dtype == dtype
        for node in row.kernel.nodes
        if node in layers
    }


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Block:
    folder = tmp_path_factory.mktemp("full") / "bf16"
    one = random_bundle.with_layers(MODEL, blocks=1, text=1)
    definition = next(each for each in transformer_graphs(one, "bfloat16") if each.name == BLOCK)
    topology = trace(definition, TRACE_SIZES.dims(one))
    graph = write_graph(topology, definition, random_bundle.random_weights(definition), folder)
    path = folder.parent / graph.path
    layers = layers_of(BLOCK, graph_file.read(path))
    return Block(graph, path, frozenset(layer.node for layer in layers))


def in_fp4(rows: tuple[Row, ...], layers: frozenset[str]) -> set[str]:
    return in_format(rows, layers, bound.FP4)


def test_bfloat16_is_no_worse_than_a_block_written_plainly(block: Block, tmp_path: Path) -> None:
    rows = block.compile("", tmp_path)
    assert not in_fp4(rows, block.layers)
    assert {row.work.dtype for row in rows if row.work.op_class == "gemm"} == {"bfloat16"}
    seconds = sum(row.work.seconds(CARD) for row in rows)
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
    seconds = sum(row.work.seconds(CARD) for row in rows)
    assert seconds * 20 * 50 <= BOUND


def test_scaled_inputs_stay_fp4_and_cost_a_few_per_cent(block: Block, tmp_path: Path) -> None:
    """What AWQ adds: one multiplication in front of every input's quantization."""
    model = graph_file.read(block.path)
    layers = layers_of(BLOCK, model)
    random = np.random.default_rng(0)
    scales = {
        layer.input: random.choice([0.5, 0.75, 1.5], layer.shape[0]).tolist() for layer in layers
    }
    made = {}
    for layer in layers:
        weight = graph_file.value(model, layer.weight, block.path.parent).astype(np.float32)
        made[layer.name] = quantized_layer.quantize(
            layer, weight, "nvfp4", amax=8.0, channel_scales=scales[layer.input]
        )
    path = tmp_path / "scaled" / block.path.name
    graph_file.write(rewrite.device(model, layers, made), block.path.parent, path)
    rows = block.plan(path, tmp_path)
    assert in_fp4(rows, block.layers) == block.layers
    seconds = sum(row.work.seconds(CARD) for row in rows)
    assert seconds * 20 * 50 <= SCALED_BOUND


def test_paper_leaves_the_temporal_convolution_in_bfloat16(block: Block, tmp_path: Path) -> None:
    rows = block.compile("paper", tmp_path)
    temporal = {"ff.conv_temp", "ff.conv_temp.1"}
    assert in_fp4(rows, block.layers) == block.layers - temporal


def test_mixed_makes_the_same_feed_forward_fp8_first_and_fp4_later(
    block: Block, tmp_path: Path
) -> None:
    always = {"attn1.to_q", "attn1.to_k", "attn2.to_out.0", "ff.conv_temp", "ff.conv_temp.1"}
    feed_forward = {"ff.conv_inverted", "ff.conv_point"}
    shallow = block.compile("mixed", tmp_path, "block_05")
    assert in_fp4(shallow, block.layers) == always
    assert in_format(shallow, block.layers, FP8) == block.layers - always
    deep = block.compile("mixed", tmp_path, "block_06")
    assert in_fp4(deep, block.layers) == always | feed_forward
    assert in_format(deep, block.layers, FP8) == block.layers - always - feed_forward
