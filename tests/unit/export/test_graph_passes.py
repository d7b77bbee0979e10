"""The passes, on modules small enough to know the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from sana_rt.export.graph_definition import GraphDefinition
from sana_rt.export.onnx_export import write_graph
from sana_rt.export.trace import OPSET, Topology, trace
from sana_rt.export.weights import LazyTensor, Weights
from sana_rt.tensors import TensorSpec

DIMS = {"batch": 2, "length": 3}
EPS = 1e-15


class Small(nn.Module):
    """One of each thing that the passes treat."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 6)
        self.conv = nn.Conv2d(6, 8, 1, bias=False)
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).unflatten(-1, (2, 3)).flatten(2)
        weight = self.conv.weight.flatten(1)
        x = torch.nn.functional.linear(x, weight) + torch.nn.functional.linear(x, weight[:, :6])
        total = x.sum(-1, keepdim=True) + EPS  # a constant that counts where the sum is 0
        return x / total * (1 + self.scale)


@pytest.fixture(scope="module")
def definition() -> GraphDefinition:
    x, y = (TensorSpec(name, "float32", ("batch", "length", n)) for name, n in (("x", 4), ("y", 8)))
    return GraphDefinition("small", "small", "float32", Small, (x,), (y,))


@pytest.fixture(scope="module")
def topology(definition: GraphDefinition) -> Topology:
    return trace(definition, DIMS)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    small = Small().eval()
    nn.init.zeros_(small.proj.bias)  # so that zeros in give a sum of zero
    return small


@pytest.fixture(scope="module")
def path(
    definition: GraphDefinition,
    topology: Topology,
    module: nn.Module,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    state = module.state_dict()
    weights = Weights(
        {
            name: LazyTensor(tuple(tensor.shape), lambda tensor=tensor: tensor)
            for name, tensor in state.items()
        }
    )
    folder = tmp_path_factory.mktemp("graph") / "fp32"
    write_graph(topology, definition, weights, folder)
    return folder / "small.onnx"


def test_weights_of_matmuls_are_plain(path: Path, module: nn.Module) -> None:
    model = onnx.load(path)
    found = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    proj, conv = module.proj.weight, module.conv.weight
    np.testing.assert_array_equal(found["proj.weight"], proj.detach().numpy().T)
    np.testing.assert_array_equal(found["conv.weight"], conv.detach().numpy()[..., 0, 0].T)
    assert not any(name.startswith("unused") for name in found)
    nodes = {node.name: node for node in model.graph.node}
    assert {"proj", "conv"} <= nodes.keys()
    assert list(nodes["proj"].input) == ["x", "proj.weight"]


def test_arithmetic_on_weights_stays_in_the_graph(path: Path) -> None:
    model = onnx.load(path)
    scale = next(each for each in model.graph.initializer if each.name == "scale")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(scale), np.ones(8))
    assert [node.op_type for node in model.graph.node if "scale" in node.input] == ["Add"]


def test_an_epsilon_survives(path: Path) -> None:
    """onnxscript's own optimizer takes it for zero and makes this 0/0."""
    session = ort.InferenceSession(path)
    y = session.run(None, {"x": np.zeros((1, 1, 4), np.float32)})[0]
    np.testing.assert_array_equal(y, 0)
    constants = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    assert any(value.size == 1 and 0 < value.item() < 1e-14 for value in constants)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 2)])
def test_sizes_are_free(path: Path, module: nn.Module, size: tuple[int, int]) -> None:
    x = torch.randn(*size, 4, generator=torch.Generator().manual_seed(1))
    y = ort.InferenceSession(path).run(None, {"x": x.numpy()})[0]
    with torch.no_grad():
        wanted = module(x).numpy()
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_shapes_are_computed_by_no_node(path: Path) -> None:
    """Reshapes that keep or infer their sizes need none."""
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert "Reshape" in ops
    assert not {"Shape", "Concat"} & set(ops)


def test_names_are_unique_and_tell_nothing_of_the_machine(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    traces = (b".py", b"site-packages", bytes(Path(__file__).parents[3]), bytes(Path.home()))
    assert [each for each in traces if each in path.read_bytes()] == []
    assert model.producer_name == "sana-rt"
    assert {each.domain: each.version for each in model.opset_import} == {"": OPSET}


def test_weights_lie_on_pages(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    offsets = []
    for tensor in model.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            assert where["location"] == "small.weights"
            offsets.append(int(where["offset"]))
    assert len(offsets) == 4  # two projections, a bias, the scale
    assert [offset % 4096 for offset in offsets] == [0] * len(offsets)
