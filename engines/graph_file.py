"""What an ONNX file says of itself; its weights are not read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

#: Types that not every card can multiply, by their number in ONNX.
LOW_PRECISION: Final[dict[int, str]] = {
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT4E2M1: "float4_e2m1",
}

#: A node's metadata as torch.onnx.export writes it: "module: class" of each module around it,
#: outermost first, then the operator, divided by "/".
_NAMESPACE: Final = "namespace"
_UNKNOWN: Final = "unknown"


def load(path: Path) -> ModelProto:
    """The graph without its weights."""
    return onnx.load(path, load_external_data=False)


def low_precision(model: ModelProto) -> dict[str, str]:
    """The types below 16 bits that a graph computes in, each with a tensor that has it."""
    return {
        LOW_PRECISION[tensor.data_type]: tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type in LOW_PRECISION
    }


def module_of(model: ModelProto, node_name: str) -> str:
    """The module that the node called ``node_name`` was traced from, as ``path: class``."""
    for node in _nodes(model.graph):
        if node.name == node_name:
            return _module(node)
    return _UNKNOWN


def _module(node: NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == _NAMESPACE:
            return "/".join(entry.value.split("/")[:-1][-1:]) or _UNKNOWN
    return _UNKNOWN


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)
