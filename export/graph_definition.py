"""A graph before it is traced: its module, where its weights are, its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from torch import nn

from sana_rt.tensors import Dim, Shape, TensorSpec

DType = Literal["float32", "bfloat16"]
PartName = Literal["transformer", "vae", "text_encoder"]
Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]

#: Dimensions that a caller chooses.
BATCH: Final[Dim] = "batch"
SIZE: Final[Shape] = ("height", "width")
LATENT_SIZE: Final[Shape] = ("latent_height", "latent_width")


@dataclass(frozen=True)
class GraphDefinition:
    """One graph before it is traced.

    ``source`` is the part of the checkpoint that its weights come from, under ``prefix``.
    Graphs with the same ``topology`` differ in nothing but their weights.
    """

    name: str
    topology: str
    dtype: DType
    build: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source: PartName = "transformer"
    prefix: str = ""


def f32(name: str, *shape: Dim) -> TensorSpec:
    """A float32 tensor."""
    return TensorSpec(name, "float32", shape)


def next_value(tensor: TensorSpec) -> TensorSpec:
    """The output that the input ``tensor`` becomes in the next run."""
    return TensorSpec(f"{tensor.name}_out", tensor.dtype, tensor.shape)
