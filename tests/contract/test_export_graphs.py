"""The graphs of a bundle are those of docs/architecture.md, and keep the format's rules."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from sana_rt.bundle import Bundle
from sana_rt.decode_window import DecodeWindow
from sana_rt.export import tensor_shapes
from sana_rt.export.seeded import SMALL
from sana_rt.export.trace import IR_VERSION, OPSET
from sana_rt.manifest import Graph
from sana_rt.tensors import TensorSpec

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)`.*?\| (.+?) \| (.+?) \| .+ \|$", re.MULTILINE)
NAMES = (
    *("text_encoder", "prompt", "rope", "timestep", "patch_embed"),
    *(f"block_{index:02d}" for index in range(4)),
    *("final_layer", "solver", "vae_decoder_first", "vae_decoder", "vae_encoder"),
)
DTYPES = {"float32": "FLOAT", "uint8": "UINT8", "int64": "INT64"}


@pytest.fixture(scope="module")
def graphs(small_bundle: Path) -> dict[str, Graph]:
    return Bundle.open(small_bundle).manifest.variant("fp32").graphs


def table() -> dict[str, tuple[set[str], set[str]]]:
    """Names of inputs and outputs by graph, as the architecture's table has them."""
    text = (ROOT / "docs/architecture.md").read_text()
    rows = {}
    for name, inputs, outputs in ROW.findall(text):
        rows[name] = tuple(
            set(re.findall(r"`(\w+)`", re.sub(r"\[[^]]*\]", "", cell)))
            for cell in (inputs, outputs)
        )
    return rows


def test_graphs_are_those_of_the_architecture(graphs: dict[str, Graph]) -> None:
    assert tuple(graphs) == NAMES
    rows = table()
    assert {"block_00" if name.startswith("block") else name for name in graphs} <= rows.keys()
    for name, graph in graphs.items():
        inputs, outputs = rows["block_00" if name.startswith("block") else name]
        found = {tensor.name for tensor in graph.inputs}, {tensor.name for tensor in graph.outputs}
        if name.startswith("vae_decoder"):  # the table shows the first cache of many
            found = tuple({each for each in names if not is_late_cache(each)} for names in found)
        assert found == (inputs, outputs), name


def is_late_cache(name: str) -> bool:
    return name.startswith("cache_") and not name.startswith("cache_00")


def test_what_is_written_next_is_what_is_read(graphs: dict[str, Graph]) -> None:
    """An output ``x_out`` has the type and shape of the input ``x``."""
    for name, graph in graphs.items():
        inputs = {tensor.name: tensor for tensor in graph.inputs}
        for tensor in graph.outputs:
            before = inputs.get(tensor.name.removesuffix("_out"))
            if before is not None:
                assert (before.dtype, before.shape) == (tensor.dtype, tensor.shape), name
    first, later = graphs["vae_decoder_first"], graphs["vae_decoder"]
    assert first.outputs[1:] == later.outputs[1:]


def test_the_manifest_says_how_the_decoder_is_called(small_bundle: Path) -> None:
    variant = Bundle.open(small_bundle).manifest.variant("fp32")
    assert variant.decoder == DecodeWindow(
        latent_frames=1,
        frames=4,
        first_latent_frames=1,
        first_frames=1,
        lookahead=0,
        caches=len(variant.graphs["vae_decoder"].inputs) - 1,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_is_valid_and_says_what_the_manifest_says(name: str, small_bundle: Path) -> None:
    graph = Bundle.open(small_bundle).manifest.variant("fp32").graphs[name]
    path = small_bundle / graph.path
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert model.ir_version == IR_VERSION
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    assert graph.opset == OPSET
    assert [signature(each) for each in model.graph.input] == [spec(each) for each in graph.inputs]
    assert [signature(each) for each in model.graph.output] == [
        spec(each) for each in graph.outputs
    ]


def signature(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return value.name, onnx.TensorProto.DataType.Name(tensor.elem_type), dims


def spec(tensor: TensorSpec) -> tuple[str, str, tuple[int | str, ...]]:
    return tensor.name, DTYPES[tensor.dtype], tensor.shape


def test_blocks_differ_in_their_weights_only(small_bundle: Path) -> None:
    def stripped(index: int) -> bytes:
        path = small_bundle / f"fp32/block_{index:02d}.onnx"
        return path.read_bytes().replace(path.stem.encode(), b"block_xx")

    assert len({stripped(index) for index in range(4)}) == 1
    weights = {(small_bundle / f"fp32/block_{i:02d}.weights").read_bytes() for i in range(4)}
    assert len(weights) == 4


def test_every_matmul_with_a_weight_has_its_name(small_bundle: Path) -> None:
    """What a recipe names; the weights are [in, out]."""
    model = onnx.load(small_bundle / "fp32/block_00.onnx", load_external_data=False)
    weights = {each.name: tuple(each.dims) for each in model.graph.initializer}
    found = {
        node.name: weights[node.input[1]]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    }
    width, hidden = SMALL.transformer.width, 2 * SMALL.transformer.ffn_dim
    square = (width, width)
    taps = {name: shape for name, shape in found.items() if name.startswith("ff.conv_temp")}
    assert {name: shape for name, shape in found.items() if name not in taps} == {
        "attn1.to_q": square,
        "attn1.to_k": square,
        "attn1.to_v": square,
        "attn1.to_out.0": square,
        "attn2.to_q": square,
        "attn2.to_out.0": square,
        "ff.conv_inverted": (width, hidden),
        "ff.conv_point": (hidden // 2, width),
    }
    assert taps["ff.conv_temp"] == (width, 3 * width)


def test_initializers_are_tensors_of_the_checkpoint(small_bundle: Path) -> None:
    """Names of the checkpoint, and a constant that is no weight is small."""
    keys = {
        name.split(".", 2)[2] for name in tensor_shapes.transformer(SMALL) if "_blocks.0." in name
    }
    model = onnx.load(small_bundle / "fp32/block_00.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.external_data:
            assert re.sub(r"\.\d+$", "", tensor.name) in keys
        else:
            assert np.prod(tensor.dims) <= SMALL.transformer.width, tensor.name


def test_no_file_tells_where_it_was_made(small_bundle: Path, small_checkpoint: Path) -> None:
    places = [place for place in (ROOT, Path.home(), small_checkpoint) if place != Path("/")]
    traces = [b"site-packages", b".py", *map(bytes, places)]
    for path in [*small_bundle.glob("*/*.onnx"), small_bundle / "manifest.json"]:
        data = path.read_bytes()
        assert [trace for trace in traces if trace in data] == [], path.name


def test_linear_attention_divides_by_more_than_zero(small_bundle: Path) -> None:
    """Tokens whose queries are all zero: 0 / (0 + eps), not 0 / 0."""
    session = ort.InferenceSession(small_bundle / "fp32/block_00.onnx")
    graph = Bundle.open(small_bundle).manifest.variant("fp32").graphs["block_00"]
    dims = {"batch": 1, "frames": 1, "rows": 2, "columns": 2}
    zeros = {
        tensor.name: np.zeros([dims.get(str(dim), dim) for dim in tensor.shape], np.float32)
        for tensor in graph.inputs
    }
    # scale = -1 and shift = 0 behind the norm make everything zero
    table = np.fromfile(small_bundle / graph.weights[0], np.float32)
    offset = next(
        int(next(entry.value for entry in each.external_data if entry.key == "offset"))
        for each in onnx.load(small_bundle / graph.path, load_external_data=False).graph.initializer
        if each.name == "scale_shift_table"
    )
    width = SMALL.transformer.width
    rows = table[offset // 4 : offset // 4 + 6 * width].reshape(6, width)
    modulation = -rows
    modulation[1] -= 1
    zeros["modulation"] = modulation.reshape(1, 1, 6, width).copy()
    for output in session.run(None, zeros):
        assert np.isfinite(output).all()
