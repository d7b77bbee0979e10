"""A graph before it is traced: its module, where its weights are, its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from sana_rt.tensors import TensorSpec

DType = Literal["float32", "bfloat16"]
PartName = Literal["transformer", "vae", "text_encoder"]


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
