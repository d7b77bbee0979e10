"""The LTX-2 autoencoder's encoder; its graph takes one image, the first frame of a clip."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sana_rt.export.modules.ltx2_layers import (
    STRIDES,
    Conv3d,
    Half,
    Kind,
    ResidualBlocks,
    folded,
    normed,
)
from sana_rt.model_spec import LTX2VAESpec, Scaling


class LTX2Encoder(Half):
    """The graph ``vae_encoder``.

    The parameters are the checkpoint's ``encoder.*`` and the statistics of latents.
    """

    def __init__(self, spec: LTX2VAESpec) -> None:
        super().__init__(spec)
        self.encoder = Encoder3d(spec)

    def forward(self, image: Tensor) -> Tensor:
        """u8 [B, H, W, 3] -> f32 [B, C, 1, h, w]: the posterior's mode, normalised."""
        return self.encode(image.unsqueeze(1))

    def encode(self, clip: Tensor) -> Tensor:
        """Frames u8 [B, T, H, W, 3] -> f32 [B, C, T', h, w]."""
        frames = (clip.float() / 255 * 2 - 1).permute(0, 4, 1, 2, 3)
        mode: Tensor = self.encoder(frames.to(self.encoder.conv_in.conv.weight.dtype)).float()
        mean, std = self.statistics()
        latents: Tensor = (mode - mean) / std
        return latents


class Encoder3d(nn.Module):
    """Frames to the mean of their latents; one more channel, the log-variance, is not used."""

    def __init__(self, spec: LTX2VAESpec) -> None:
        super().__init__()
        self.patch = (1, spec.patch_size, spec.patch_size)
        kind = Kind(spec.encoder_causal, spec.encoder_padding, spec.norm_eps)
        self.latent_channels = spec.latent_channels
        widths = (spec.latent_channels, *spec.block_out_channels)
        *counts, middle = spec.layers_per_block
        self.conv_in = Conv3d(3 * spec.patch_size**2, widths[0], kind)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, width, count, scaling, kind)
            for (before, width), count, scaling in zip(
                pairwise(widths), counts, spec.downsample_type, strict=True
            )
        )
        self.mid_block = ResidualBlocks(widths[-1], middle, kind)
        self.conv_out = Conv3d(widths[-1], spec.latent_channels + 1, kind)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, C, T', h, w]."""
        x = self.conv_in(folded(frames, self.patch, columns_first=True))
        for block in self.down_blocks:
            x = block(x)
        moments: Tensor = self.conv_out(F.silu(normed(self.mid_block(x))))
        return moments[:, : self.latent_channels]


class DownBlock(nn.Module):
    """Residual blocks, then a downsampling to ``out_channels``."""

    def __init__(
        self, in_channels: int, out_channels: int, count: int, scaling: Scaling, kind: Kind
    ) -> None:
        super().__init__()
        self.resnets = ResidualBlocks(in_channels, count, kind).resnets
        self.downsamplers = nn.ModuleList([Downsample(in_channels, out_channels, scaling, kind)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class Downsample(nn.Module):
    """Smaller frames with more channels; the input is added, its channels averaged in groups.

    Where frames are halved, the first is doubled before.
    """

    def __init__(self, in_channels: int, out_channels: int, scaling: Scaling, kind: Kind) -> None:
        super().__init__()
        self.strides = t, h, w = STRIDES[scaling]
        self.group = in_channels * t * h * w // out_channels
        self.conv = Conv3d(in_channels, out_channels // (t * h * w), kind)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        x = torch.cat((x[:, :, : self.strides[0] - 1], x), dim=2)
        mean = folded(x, self.strides).unflatten(1, (-1, self.group)).mean(2)
        out: Tensor = folded(self.conv(x), self.strides) + mean
        return out
