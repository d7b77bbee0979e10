"""The names and shapes of a checkpoint's tensors, as its specification demands them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sana_rt.export.modules.gemma2 import Gemma2Encoder
from sana_rt.export.modules.transformer import parts
from sana_rt.export.modules.wan_decoder import WanDecoder
from sana_rt.export.modules.wan_encoder import WanEncoder
from sana_rt.model_spec import ModelSpec, TextSpec, VAESpec

Shapes = dict[str, tuple[int, ...]]


def transformer(spec: ModelSpec) -> Shapes:
    """The transformer's tensors; parts that share one agree on its shape."""
    found: Shapes = {}
    for part in parts(spec.transformer).values():
        found |= {part.prefix + name: shape for name, shape in _of(part.build).items()}
    return found


def text_encoder(spec: TextSpec) -> Shapes:
    """The text encoder's tensors."""
    return _of(lambda: Gemma2Encoder(spec))


def _of(build: Callable[[], nn.Module]) -> Shapes:
    with torch.device("meta"):
        module = build()
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def vae(spec: VAESpec) -> Shapes:
    """The Wan autoencoder's tensors."""
    return _of(lambda: WanDecoder(spec)) | _of(lambda: WanEncoder(spec))
