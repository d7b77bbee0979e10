"""A module traced to an ONNX graph without its weights: the topology that many graphs share."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sana_rt.errors import ExportError
from sana_rt.export import graph_passes
from sana_rt.export.graph_definition import GraphDefinition
from sana_rt.export.graph_passes import Weight
from sana_rt.tensors import TensorSpec, resolve

#: The ONNX operator set of every graph; ONNX Runtime 1.31 and TensorRT-RTX 1.7 both read it.
OPSET: Final = 23
#: The version of the file format that goes with it.
IR_VERSION: Final = 11

TORCH_DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "uint8": torch.uint8,
}


@dataclass(frozen=True)
class Topology:
    """A graph whose last inputs are its ``weights``, which have no values yet."""

    model: ir.Model
    weights: tuple[Weight, ...]


def trace(definition: GraphDefinition, dims: dict[str, int]) -> Topology:
    """Trace a graph's module; ``dims`` are example sizes, none of which is kept."""
    module, names = _without_values(definition)
    program = _export(definition, module, dims)
    with _quiet():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=[tensor.name for tensor in definition.inputs],
            output_names=[tensor.name for tensor in definition.outputs],
        )
    assert onnx_program is not None
    model = onnx_program.model
    graph_passes.weights_to_inputs(model, names)
    graph_passes.simplify(model)
    weights = graph_passes.take_weights(model, names)
    graph_passes.name_nodes(model.graph, weights)
    _check_signature(definition, model)
    _label(model)
    return Topology(model, weights)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says about itself: absent torchvision, its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            yield
    finally:
        logger.setLevel(level)


def _without_values(definition: GraphDefinition) -> tuple[nn.Module, list[str]]:
    """The module with fake weights, which have a shape and a type only, and their names."""
    with torch.device("meta"):
        module = definition.build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = {
            name: torch.empty(tensor.shape, dtype=TORCH_DTYPES[definition.dtype])
            for name, tensor in module.state_dict().items()
        }
    module.load_state_dict(fake, assign=True)
    return module.eval(), list(fake)


def _export(
    definition: GraphDefinition, module: nn.Module, dims: dict[str, int]
) -> torch.export.ExportedProgram:
    arguments = tuple(
        torch.zeros(resolve(tensor.shape, dims), dtype=TORCH_DTYPES[tensor.dtype])
        for tensor in definition.inputs
    )
    with torch.no_grad():
        return torch.export.export(
            module, arguments, dynamic_shapes=_dynamic(module, definition.inputs), strict=False
        )


def _dynamic(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> tuple[Any, ...]:
    """Which dimensions vary, by argument; those of ``*arguments`` come as one tuple."""
    by_input = [
        {
            axis: torch.export.Dim.DYNAMIC
            for axis, dim in enumerate(tensor.shape)
            if isinstance(dim, str)
        }
        for tensor in inputs
    ]
    kinds = [each.kind for each in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(by_input)
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*by_input[:named], tuple(by_input[named:]))


def _check_signature(definition: GraphDefinition, model: ir.Model) -> None:
    """Give inputs and outputs their named dimensions; types must be the ones defined."""
    traced = {str(value.name): value for value in (*model.graph.inputs, *model.graph.outputs)}
    for tensor in (*definition.inputs, *definition.outputs):
        value = traced[tensor.name]
        if value.dtype is None or value.dtype.name.lower() != _onnx_name(tensor.dtype):
            raise ExportError(
                f"{definition.name}: {tensor.name} was traced as {value.dtype}.",
                expected=f"{tensor.dtype}.",
            )
        if value.shape is not None and len(value.shape) != len(tensor.shape):
            raise ExportError(
                f"{definition.name}: {tensor.name} was traced with shape {value.shape}.",
                expected=f"{tensor.shape}.",
            )
        value.shape = ir.Shape(tensor.shape)


def _onnx_name(dtype: str) -> str:
    return {"float32": "float"}.get(dtype, dtype)


def _label(model: ir.Model) -> None:
    model.ir_version = IR_VERSION
    model.producer_name = "sana-rt"
    model.producer_version = None
    model.metadata_props.clear()
    model.doc_string = None
