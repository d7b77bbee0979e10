"""The names and shapes of a checkpoint's tensors, as its specification demands them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sana_rt.export.modules.gemma2 import Gemma2Encoder
from sana_rt.export.modules.transformer import parts
from sana_rt.model_spec import ModelSpec, TextSpec

Shapes = dict[str, tuple[int, ...]]


def transformer(spec: ModelSpec) -> Shapes:
    """The transformer's tensors; parts that share one agree on its shape."""
    found: Shapes = {}
    for part in parts(spec.transformer).values():
        found |= {part.prefix + name: shape for name, shape in of_module(part.build).items()}
    return found


def text_encoder(spec: TextSpec) -> Shapes:
    """The text encoder's tensors."""
    return of_module(lambda: Gemma2Encoder(spec))


def of_module(build: Callable[[], nn.Module]) -> Shapes:
    """The tensors of a module."""
    with torch.device("meta"):
        module = build()
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
