"""The causal autoencoder of Wan 2.1: its configuration, its tensors, and its graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sana_rt.export import config_tables, tensor_shapes, wan_keys
from sana_rt.export.graph_definition import (
    BATCH,
    LATENT_SIZE,
    SIZE,
    DType,
    GraphDefinition,
    Signature,
    f32,
    next_value,
)
from sana_rt.export.modules.wan_decoder import CacheSpec, WanDecoder, WanDecoderFirst
from sana_rt.export.modules.wan_encoder import WanEncoder
from sana_rt.export.tensor_shapes import Shapes
from sana_rt.graph_names import DECODER, DECODER_FIRST, ENCODER
from sana_rt.manifest import CACHE_PREFIX, DecodeWindow
from sana_rt.model_spec import WanVAESpec
from sana_rt.tensors import TensorSpec


@dataclass(frozen=True)
class Wan:
    """See :class:`sana_rt.export.autoencoders.Autoencoder`."""

    spec: WanVAESpec

    @staticmethod
    def class_name() -> str:
        """What diffusers calls it."""
        return config_tables.WAN.identity[1]

    @staticmethod
    def read(path: Path, config: Mapping[str, Any]) -> WanVAESpec:
        """The specification that diffusers' ``config`` says."""
        values = config_tables.WAN.checked(str(path), config)
        temporal = values["temperal_downsample"]  # the field is spelt so
        return WanVAESpec(
            latent_channels=values["z_dim"],
            temporal_stride=2 ** sum(temporal),
            spatial_stride=2 ** len(temporal),
            latents_mean=values["latents_mean"],
            latents_std=values["latents_std"],
            base_dim=values["base_dim"],
            dim_mult=values["dim_mult"],
            num_res_blocks=values["num_res_blocks"],
            temporal_downsample=temporal,
        )

    def config(self) -> dict[str, Any]:
        """The specification as diffusers' configuration."""
        return {
            "_class_name": self.class_name(),
            "base_dim": self.spec.base_dim,
            "z_dim": self.spec.latent_channels,
            "dim_mult": self.spec.dim_mult,
            "num_res_blocks": self.spec.num_res_blocks,
            "attn_scales": [],
            "temperal_downsample": self.spec.temporal_downsample,
            "latents_mean": self.spec.latents_mean,
            "latents_std": self.spec.latents_std,
        }

    def tensor_shapes(self) -> Shapes:
        """The checkpoint's tensors."""
        decoder, encoder = partial(WanDecoder, self.spec), partial(WanEncoder, self.spec)
        return tensor_shapes.of_module(decoder) | tensor_shapes.of_module(encoder)

    def original_to_diffusers(self, name: str) -> str:
        """The diffusers name of a tensor of ``Wan2.1_VAE.pth``."""
        return wan_keys.original_to_diffusers(name, self.spec.num_res_blocks)

    def graphs(self, dtype: DType) -> tuple[GraphDefinition, ...]:
        """The decoder's two steps and the encoder for one image."""
        spec, window = self.spec, self.window()
        latents = f32("latents", BATCH, spec.latent_channels, 1, *LATENT_SIZE)
        image = TensorSpec("image", "uint8", (BATCH, *SIZE, 3))
        first, later = (
            TensorSpec("frames", "uint8", (BATCH, count, *SIZE, 3))
            for count in (window.first_frames, window.frames)
        )
        caches = tuple(
            TensorSpec(f"{CACHE_PREFIX}{index:02d}", dtype, cache.shape(spec.spatial_stride))
            for index, cache in enumerate(self._caches)
        )
        outputs = tuple(map(next_value, caches))

        def graph(
            name: str, build: Callable[[], nn.Module], signature: Signature
        ) -> GraphDefinition:
            return GraphDefinition(name, name, dtype, build, *signature, source="vae")

        return (
            graph(DECODER_FIRST, partial(WanDecoderFirst, spec), ((latents,), (first, *outputs))),
            graph(DECODER, partial(WanDecoder, spec), ((latents, *caches), (later, *outputs))),
            graph(ENCODER, partial(WanEncoder, spec), ((image,), (latents,))),
        )

    def window(self) -> DecodeWindow:
        """A latent frame a call, of which the first is one picture."""
        return DecodeWindow(
            latent_frames=1,
            frames=self.spec.temporal_stride,
            first_latent_frames=1,
            first_frames=1,
            lookahead=0,
            caches=len(self._caches),
        )

    @cached_property
    def _caches(self) -> tuple[CacheSpec, ...]:
        with torch.device("meta"):
            return WanDecoder(self.spec).cache_specs()
