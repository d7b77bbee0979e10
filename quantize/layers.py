"""The layers of a graph: matrix products with a weight of their own."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto


@dataclass(frozen=True)
class Layer:
    """The MatMul called ``node`` of ``graph``: input [..., K] times weight [K, N]."""

    graph: str
    node: str
    input: str
    weight: str
    output: str
    shape: tuple[int, int]  # K, N
    input_rank: int | None  # None where the graph does not say

    @property
    def name(self) -> str:
        """What recipes call it."""
        return f"{self.graph}/{self.node}"

    @property
    def is_second_use(self) -> bool:
        """Whether another layer has the same weights and more to do.

        ``ff.conv_temp.1`` is the temporal convolution on the frame in front of a chunk.
        """
        return self.node.endswith(".1")


def layers_of(graph: str, model: ModelProto) -> tuple[Layer, ...]:
    """The layers of ``model``, in the order of its nodes; values of weights are not needed."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*model.graph.value_info, *model.graph.input)
        if value.type.tensor_type.HasField("shape")
    }
    found = []
    for node in model.graph.node:
        is_product = node.op_type == "MatMul" and len(node.input) == 2
        shape = weights.get(node.input[1], ()) if is_product else ()
        if len(shape) == 2 and node.input[0] not in weights:
            data, weight = node.input
            k, n = shape
            output = node.output[0]
            found.append(Layer(graph, node.name, data, weight, output, (k, n), ranks.get(data)))
    return tuple(found)
