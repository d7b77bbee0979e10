"""The autoencoder of LTX-2: its configuration, its tensors, and its graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import nn

from sana_rt.decode_window import DecodeWindow
from sana_rt.export import config_tables, tensor_shapes
from sana_rt.export.graph_definition import DType, GraphDefinition
from sana_rt.export.modules.ltx2_decoder import (
    LTX2Decoder,
    LTX2DecoderFirst,
    LTX2DecoderLater,
    LTX2DecoderWhole,
)
from sana_rt.export.modules.ltx2_encoder import LTX2Encoder
from sana_rt.export.tensor_shapes import Shapes
from sana_rt.graph_names import DECODER, DECODER_FIRST, DECODER_WHOLE, ENCODER
from sana_rt.model_spec import LTX2VAESpec
from sana_rt.signatures import autoencoder


@dataclass(frozen=True)
class LTX2:
    """See :class:`sana_rt.export.autoencoders.Autoencoder`."""

    spec: LTX2VAESpec

    @staticmethod
    def class_name() -> str:
        """What diffusers calls it."""
        return config_tables.LTX2.identity[1]

    @staticmethod
    def read(path: Path, config: Mapping[str, Any]) -> LTX2VAESpec:
        """The specification that diffusers' ``config`` says."""
        values = config_tables.LTX2.checked(str(path), config)
        temporal, spatial = config_tables.ltx2_strides(values, "upsample_type")
        return LTX2VAESpec(
            latent_channels=values["latent_channels"],
            temporal_stride=temporal,
            spatial_stride=spatial,
            encoder_padding=values["encoder_spatial_padding_mode"],
            decoder_padding=values["decoder_spatial_padding_mode"],
            norm_eps=values["resnet_norm_eps"],
            upsample_residual=config_tables.ltx2_residual(values),
            **{name: values[name] for name in _SAME},
        )

    def config(self) -> dict[str, Any]:
        """The specification as diffusers' configuration."""
        spec = self.spec
        down, up = len(spec.downsample_type), len(spec.upsample_type)
        return {
            "_class_name": self.class_name(),
            "latent_channels": spec.latent_channels,
            "down_block_types": [config_tables.LTX2_DOWN_BLOCK] * down,
            "spatio_temporal_scaling": [True] * down,
            "decoder_spatio_temporal_scaling": [True] * up,
            "decoder_inject_noise": [False] * (up + 1),
            "timestep_conditioning": False,
            "resnet_norm_eps": spec.norm_eps,
            "encoder_spatial_padding_mode": spec.encoder_padding,
            "decoder_spatial_padding_mode": spec.decoder_padding,
            "upsample_residual": spec.upsample_residual,
            "spatial_compression_ratio": spec.spatial_stride,
            "temporal_compression_ratio": spec.temporal_stride,
            **{name: getattr(spec, name) for name in _SAME},
        }

    def tensor_shapes(self) -> Shapes:
        """The checkpoint's tensors."""
        decoder, encoder = partial(LTX2Decoder, self.spec), partial(LTX2Encoder, self.spec)
        return tensor_shapes.of_module(decoder) | tensor_shapes.of_module(encoder)

    def original_to_diffusers(self, name: str) -> str:
        """The same: no file of another layout is known here."""
        return name

    def graphs(self, dtype: DType) -> tuple[GraphDefinition, ...]:
        """The decoder of a whole clip and of windows, and the encoder for one image."""
        window = self.window()
        modules: Mapping[str, Callable[[], nn.Module]] = {
            DECODER_WHOLE: partial(LTX2DecoderWhole, self.spec),
            DECODER_FIRST: partial(LTX2DecoderFirst, self.spec, window),
            DECODER: partial(LTX2DecoderLater, self.spec, window),
            ENCODER: partial(LTX2Encoder, self.spec),
        }
        return tuple(self._graph(name, dtype, build) for name, build in modules.items())

    def _graph(self, name: str, dtype: DType, build: Callable[[], nn.Module]) -> GraphDefinition:
        tensors = autoencoder(name, self.spec, dtype, self.window())
        assert tensors is not None, "what is exported has a signature"
        return GraphDefinition(name, name, dtype, build, *tensors, source="vae")

    def window(self) -> DecodeWindow:
        """A latent frame a call, with one on either side, as diffusers' windows by default."""
        stride = self.spec.temporal_stride
        return DecodeWindow(
            latent_frames=1,
            frames=stride,
            first_latent_frames=2,
            first_frames=self.spec.video_frames(2),
            lookahead=1,
            caches=1,
            lookback=1,
            blend=stride,
        )


#: Fields that are called as in diffusers' configuration.
_SAME: Final = (
    "patch_size",
    "block_out_channels",
    "layers_per_block",
    "downsample_type",
    "decoder_block_out_channels",
    "decoder_layers_per_block",
    "upsample_type",
    "upsample_factor",
    "encoder_causal",
    "decoder_causal",
)
