"""A graph cannot read files outside of its folder: the format relies on ONNX Runtime for that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

VALUES = np.arange(256, dtype=np.float32)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A folder with `values.bin`; a secret lies beside the folder."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "values.bin").write_bytes(VALUES.tobytes())
    (tmp_path / "secret.bin").write_bytes(VALUES.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    return folder / "graph.onnx"


def _write(path: Path, location: str) -> None:
    """Write y = x + w, with w in the file at ``location``."""
    weight = TensorProto(
        name="w",
        data_type=TensorProto.FLOAT,
        dims=VALUES.shape,
        data_location=TensorProto.EXTERNAL,
    )
    weight.external_data.add(key="location", value=location)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, VALUES.shape) for name in ("x", "y")
    )
    add = helper.make_node("Add", ["x", "w"], ["y"])
    model = helper.make_model(
        helper.make_graph([add], "add", [x], [y], [weight]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path.write_bytes(model.SerializeToString())


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_weights_beside_the_graph_are_read(graph: Path) -> None:
    _write(graph, "values.bin")
    (out,) = _session(graph).run(None, {"x": VALUES})
    assert np.array_equal(out, 2 * VALUES)


@pytest.mark.parametrize("location", ["../secret.bin", "{parent}/secret.bin", "link.bin"])
def test_weights_elsewhere_are_refused(graph: Path, location: str) -> None:
    _write(graph, location.format(parent=graph.parents[1]))
    onnx.load(graph, load_external_data=False)  # nothing else is wrong with it
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="xternal data"):
        _session(graph)
