"""The LTX-2 autoencoder's decoder: a clip at once, or in windows that fade into each other.

It is not causal: every frame depends on latent frames on both sides. T latent frames become
``temporal_stride · (T - 1) + 1`` frames, of which the first stands for the first latent frame.
So a window that begins within a clip gives its first latent frame as one frame only, and that
frame, like all of its look-back, is left out. See docs/decisions/0013.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sana_rt.decode_window import DecodeWindow
from sana_rt.export.modules.ltx2_layers import (
    STRIDES,
    Conv3d,
    Half,
    Kind,
    ResidualBlock,
    ResidualBlocks,
    normed,
    unfolded,
)
from sana_rt.export.modules.pixels import to_bytes
from sana_rt.model_spec import LTX2VAESpec, Scaling


class LTX2Decoder(Half):
    """What the graphs of the decoder share.

    The parameters are the checkpoint's ``decoder.*`` and the statistics of latents.
    """

    def __init__(self, spec: LTX2VAESpec) -> None:
        super().__init__(spec)
        self.spec = spec
        self.decoder = Decoder3d(spec)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents f32 [B, C, T, h, w] -> frames [B, T', 3, H, W], not clamped."""
        mean, std = self.statistics()
        scaled = (latents * std + mean).to(self.decoder.conv_in.conv.weight.dtype)
        frames: Tensor = self.decoder(scaled)
        return frames.transpose(1, 2)


class LTX2DecoderWhole(LTX2Decoder):
    """The graph ``vae_decoder_whole``: a clip at once."""

    def forward(self, latents: Tensor) -> Tensor:
        """Normalised latents f32 [B, C, T, h, w] -> u8 frames [B, T', H, W, 3]."""
        return to_bytes(self.decode(latents))


class LTX2DecoderWindow(LTX2Decoder):
    """What the first window and the later ones share."""

    def __init__(self, spec: LTX2VAESpec, window: DecodeWindow) -> None:
        super().__init__(spec)
        self.window = window

    def cut(self, frames: Tensor, count: int) -> tuple[Tensor, ...]:
        """The first ``count`` frames, and those behind them, which fade: [B, blend, 3, H, W]."""
        blend = self.window.blend
        if not blend:
            return (frames[:, :count],)
        # At the end of a clip nothing is behind; nobody reads that cache.
        longer = torch.cat((frames, frames[:, -1:].expand(-1, blend, -1, -1, -1)), dim=1)
        return frames[:, :count], longer[:, count : count + blend]


class LTX2DecoderFirst(LTX2DecoderWindow):
    """The graph ``vae_decoder_first``: the window at the beginning of a clip."""

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        """f32 [B, C, T, h, w] -> u8 frames [B, first_frames, H, W, 3], then the cache, if any."""
        frames, *caches = self.pixels(latents)
        return to_bytes(frames), *caches

    def pixels(self, latents: Tensor) -> tuple[Tensor, ...]:
        """The same, the frames [B, first_frames, 3, H, W] not clamped."""
        return self.cut(self.decode(latents), self.window.first_frames)


class LTX2DecoderLater(LTX2DecoderWindow):
    """The graph ``vae_decoder``: a window within a clip, or at its end."""

    def forward(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """f32 [B, C, T, h, w], cache [B, blend, 3, H, W] -> u8 [B, frames, H, W, 3], cache."""
        frames, *written = self.pixels(latents, *caches)
        return to_bytes(frames), *written

    def pixels(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """The same, the frames [B, frames, 3, H, W] not clamped."""
        frames = self.new(self.decode(latents))
        for before in caches:
            frames = faded(before, frames)
        return self.cut(frames, self.window.frames)

    def new(self, frames: Tensor) -> Tensor:
        """Without those of the look-back, whose first latent frame is one frame."""
        return frames[:, self.spec.video_frames(self.window.lookback) :]


def faded(before: Tensor, frames: Tensor) -> Tensor:
    """``frames`` [B, T, 3, H, W], the first of which begin as ``before`` [B, n, 3, H, W]."""
    count = before.shape[1]
    weight = (torch.arange(count, dtype=torch.float32) / count).to(before.dtype)
    weight = weight.reshape(-1, 1, 1, 1)
    mixed = before * (1 - weight) + frames[:, :count] * weight
    return torch.cat((mixed, frames[:, count:]), dim=1)


class Decoder3d(nn.Module):
    """Latents to frames."""

    def __init__(self, spec: LTX2VAESpec) -> None:
        super().__init__()
        self.patch = (1, spec.patch_size, spec.patch_size)
        kind = Kind(spec.decoder_causal, spec.decoder_padding, spec.norm_eps)
        widths = spec.decoder_block_out_channels[::-1]
        factors, residual = spec.upsample_factor[::-1], spec.upsample_residual[::-1]
        middle, *counts = spec.decoder_layers_per_block[::-1]
        outputs = [width // factor for width, factor in zip(widths, factors, strict=True)]
        self.conv_in = Conv3d(spec.latent_channels, widths[0], kind)
        self.mid_block = ResidualBlocks(widths[0], middle, kind)
        self.up_blocks = nn.ModuleList(
            UpBlock(before // factor, width, count, Scale(scaling, factor, adds), kind)
            for (before, width), count, scaling, factor, adds in zip(
                pairwise((widths[0], *outputs)),
                counts,
                spec.upsample_type,
                factors,
                residual,
                strict=True,
            )
        )
        pixels = 3 * spec.patch_size**2
        self.conv_out = Conv3d(outputs[-1], pixels, kind)

    def forward(self, z: Tensor) -> Tensor:
        """[B, C, T, h, w] -> [B, 3, T', H, W]."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        x = self.conv_out(F.silu(normed(x)))
        return unfolded(x, self.patch, columns_first=True)


class Scale(NamedTuple):
    """How a stage grows: ``factor`` times its channels become pixels; ``adds`` its input."""

    scaling: Scaling
    factor: int
    adds: bool


class UpBlock(nn.Module):
    """An upsampling to ``out_channels``, then residual blocks."""

    def __init__(
        self, in_channels: int, out_channels: int, count: int, scale: Scale, kind: Kind
    ) -> None:
        super().__init__()
        self.conv_in = None
        if in_channels != out_channels:
            self.conv_in = ResidualBlock(in_channels, out_channels, kind)
        self.upsamplers = nn.ModuleList([Upsample(out_channels, scale, kind)])
        self.resnets = ResidualBlocks(out_channels, count, kind).resnets

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        if self.conv_in is not None:
            x = self.conv_in(x)
        for layer in (*self.upsamplers, *self.resnets):
            x = layer(x)
        return x


class Upsample(nn.Module):
    """``factor · channels`` become ``channels`` of larger frames.

    Where frames are doubled, the first of them is left out. What is added is the input, unfolded
    in the same way and its channels repeated.
    """

    def __init__(self, channels: int, scale: Scale, kind: Kind) -> None:
        super().__init__()
        self.strides = t, h, w = STRIDES[scale.scaling]
        self.repeats = t * h * w // scale.factor if scale.adds else 0
        self.conv = Conv3d(scale.factor * channels, channels * t * h * w, kind)

    def forward(self, x: Tensor) -> Tensor:
        """[B, factor · C, T, H, W] -> [B, C, T', H', W']."""
        out = unfolded(self.conv(x), self.strides)
        if self.repeats:
            out = out + unfolded(x, self.strides).repeat(1, self.repeats, 1, 1, 1)
        return out[:, :, self.strides[0] - 1 :]
