"""Graphs on disk: the ONNX file, and its weights in a file beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.checker import ValidationError
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnxruntime.capi import onnxruntime_pybind11_state as ort_c

from sana_rt import weights_file
from sana_rt.errors import BundleFileError
from sana_rt.files import storage_errors, write_bytes
from sana_rt.weights_file import Extent

_UNREADABLE: Final = (
    DecodeError,
    ValidationError,
    ort_c.Fail,
    ort_c.InvalidArgument,
    ort_c.InvalidGraph,
    ort_c.InvalidProtobuf,
    ort_c.NotImplemented,
    ort_c.RuntimeException,
)
_INLINE_BYTES: Final = 1024  # smaller constants stay in the ONNX file


def read(path: Path) -> ModelProto:
    """The graph without the values of its weights."""
    with storage_errors(path), _damage_of(path):
        return onnx.load(path, load_external_data=False)


def value(model: ModelProto, name: str, folder: Path) -> npt.NDArray[Any]:
    """The value of the initializer called ``name`` of a graph that was read from ``folder``."""
    tensor = next(each for each in model.graph.initializer if each.name == name)
    with storage_errors(folder), _damage_of(folder):
        return numpy_helper.to_array(tensor, str(folder))


def session(model: ModelProto, folder: Path, watched: Sequence[str] = ()) -> ort.InferenceSession:
    """The graph, which was read from ``folder``, ready to run with ``watched`` as outputs, too."""
    there = {value.name for value in (*model.graph.output, *model.graph.input)}
    extra = [helper.make_empty_tensor_value_info(each) for each in watched if each not in there]
    model.graph.output.extend(extra)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Pools that wait in a loop take the cores from each other, one for each block.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights stay where they are mapped: many blocks may be open at once.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    with _damage_of(folder):
        return ort.InferenceSession(model.SerializeToString(), options)


def write(model: ModelProto, source: Path, path: Path) -> tuple[Path, ...]:
    """Write the graph to ``path`` and its weights beside it; the weight files written.

    Weights that ``model`` refers to are copied from the folder ``source``, one at a time.
    ``model`` is left without values.
    """
    with weights_file.beside(path) as weights:
        for tensor in model.graph.initializer:
            _load(tensor, source)
            if len(tensor.raw_data) >= _INLINE_BYTES:
                _refer(tensor, weights.append(tensor.raw_data))
    write_bytes(path, model.SerializeToString(deterministic=True))
    return weights.files


@contextmanager
def _damage_of(place: Path) -> Iterator[None]:
    """What the libraries raise for a graph that is none, although its hash is the listed one."""
    try:
        yield
    except (*_UNREADABLE, ValueError) as error:
        raise BundleFileError(
            f"A graph cannot be read from {place}: {error}.",
            expected="a graph that sana-rt export wrote.",
            remedy="export the checkpoint again.",
        ) from error


def _load(tensor: TensorProto, folder: Path) -> None:
    if uses_external_data(tensor):
        with storage_errors(folder), _damage_of(folder):
            load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _refer(tensor: TensorProto, extent: Extent) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in extent._asdict().items():
        tensor.external_data.add(key=key, value=str(entry))
