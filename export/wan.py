"""The causal autoencoder of Wan 2.1: its configuration, its tensors, and its graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import nn

from sana_rt.decode_window import DecodeWindow
from sana_rt.export import config_tables, tensor_shapes, wan_keys
from sana_rt.export.graph_definition import DType, GraphDefinition
from sana_rt.export.modules.wan_decoder import WanDecoder, WanDecoderFirst
from sana_rt.export.modules.wan_encoder import WanEncoder
from sana_rt.export.tensor_shapes import Shapes
from sana_rt.graph_names import DECODER, DECODER_FIRST, ENCODER
from sana_rt.model_spec import WanVAESpec
from sana_rt.signatures import autoencoder, wan_cache_count

_MODULES: Final[Mapping[str, Callable[[WanVAESpec], nn.Module]]] = {
    DECODER_FIRST: WanDecoderFirst,
    DECODER: WanDecoder,
    ENCODER: WanEncoder,
}


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
        return tuple(self._graph(name, dtype) for name in _MODULES)

    def _graph(self, name: str, dtype: DType) -> GraphDefinition:
        tensors = autoencoder(name, self.spec, dtype)
        assert tensors is not None, "what is exported has a signature"
        build = partial(_MODULES[name], self.spec)
        return GraphDefinition(name, name, dtype, build, *tensors, source="vae")

    def window(self) -> DecodeWindow:
        """A latent frame a call, of which the first is one picture."""
        return DecodeWindow(
            latent_frames=1,
            frames=self.spec.temporal_stride,
            first_latent_frames=1,
            first_frames=1,
            lookahead=0,
            caches=wan_cache_count(self.spec),
        )
