"""What an ONNX file says of itself; its weights are not read."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from sana_rt.errors import BundleFileError
from sana_rt.files import storage_errors

#: Types that not every card can multiply, by their number in ONNX.
LOW_PRECISION: Final[dict[int, str]] = {
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT4E2M1: "float4_e2m1",
}


def load(path: Path) -> ModelProto:
    """The graph without its weights; raises :class:`BundleFileError` if it is none."""
    try:
        with storage_errors(path):
            return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise BundleFileError(
            f"{path} is not an ONNX graph: {error}.", remedy="export the checkpoint again."
        ) from error


def low_precision(model: ModelProto) -> dict[str, str]:
    """The types below 16 bits that a graph computes in, each with a tensor that has it."""
    return {
        LOW_PRECISION[tensor.data_type]: tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type in LOW_PRECISION
    }


def module_of(node: str) -> str:
    """The module that a node is from: ``attn1`` of ``attn1/Mul_1``; see export/graph_passes."""
    return node.partition("/")[0]
