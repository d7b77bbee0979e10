"""The Wan 2.1 autoencoder's decoder as a stream: a latent frame and caches to frames and caches.

The first latent frame becomes one frame, every later one ``temporal_stride`` frames. What the
causal convolutions remember is in the **caches**, one a convolution, each the two frames it
saw last, [B, 2, C, H, W], older first. Their sizes are the same for a whole clip, so that they
are allocated once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sana_rt.export.modules.pixels import to_bytes
from sana_rt.export.modules.wan_layers import (
    CausalConv3d,
    History,
    MidBlock,
    PointwiseConv3d,
    ResidualBlock,
    RMSNorm,
    by_frame,
    channel_vector,
    check_spec,
)
from sana_rt.model_spec import WanVAESpec
from sana_rt.signatures import WAN_CACHE_FRAMES


class StreamingDecoder(nn.Module):
    """What the two graphs of the decoder share.

    The parameters are the checkpoint's ``decoder.*`` and ``post_quant_conv.*``, all of them.
    """

    def __init__(self, spec: WanVAESpec) -> None:
        super().__init__()
        check_spec(spec)
        self.spec = spec
        self.post_quant_conv = PointwiseConv3d(spec.latent_channels, spec.latent_channels)
        self.decoder = Decoder3d(spec)

    def decode(self, latents: Tensor, history: History) -> Tensor:
        """Normalised latents f32 [B, C, T, h, w] -> frames [B, T', 3, H, W], not clamped.

        An empty ``history`` begins a clip. Afterwards it holds what the next call needs.
        """
        std = channel_vector(self.spec.latents_std, latents)
        mean = channel_vector(self.spec.latents_mean, latents)
        scaled = (latents * std + mean).to(self.post_quant_conv.weight.dtype).transpose(1, 2)
        z = self.post_quant_conv(scaled)
        return torch.cat([self.decoder(frame, history) for frame in z.split(1, dim=1)], dim=1)

    def _step(self, latents: Tensor, history: History) -> tuple[Tensor, ...]:
        frames = to_bytes(self.decode(latents, history))
        return frames, *(history[conv] for conv, _ in self.decoder.caches())


class WanDecoderFirst(StreamingDecoder):
    """The graph ``vae_decoder_first``: the first latent frame, which has no past."""

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Normalised latents f32 [B, C, 1, h, w] -> u8 frames [B, 1, H, W, 3], then the caches."""
        return self._step(latents, {})


class WanDecoder(StreamingDecoder):
    """The graph ``vae_decoder``: every later latent frame."""

    def forward(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Normalised latents f32 [B, C, 1, h, w] -> u8 frames [B, 4, H, W, 3], then the caches.

        Several latent frames in a call are decoded one after the other.
        """
        convs = (conv for conv, _ in self.decoder.caches())
        return self._step(latents, dict(zip(convs, caches, strict=True)))


class Decoder3d(nn.Module):
    """A latent frame to the frames it stands for."""

    def __init__(self, spec: WanVAESpec) -> None:
        super().__init__()
        widths = [spec.base_dim * mult for mult in reversed(spec.dim_mult)]
        self.conv_in = CausalConv3d(spec.latent_channels, widths[0])
        self.mid_block = MidBlock(widths[0])
        inputs = [widths[0], *(width // 2 for width in widths[:-1])]  # upsampling halves channels
        doubling: list[bool | None] = [*reversed(spec.temporal_downsample), None]
        self.up_blocks = nn.ModuleList(
            UpBlock([a] + [b] * (spec.num_res_blocks + 1), doubles_frames)
            for a, b, doubles_frames in zip(inputs, widths, doubling, strict=True)
        )
        self.norm_out = RMSNorm(widths[-1], 4)
        self.conv_out = CausalConv3d(widths[-1], 3)

    def forward(self, z: Tensor, history: History) -> Tensor:
        """[B, 1, C, h, w] -> [B, T', 3, H, W]."""
        x = self.mid_block(self.conv_in(z, history), history)
        for block in self.up_blocks:
            x = block(x, history)
        frames: Tensor = self.conv_out(F.silu(self.norm_out(x)), history)
        return frames

    def caches(self) -> Iterator[tuple[CausalConv3d, int]]:
        """The convolutions that remember, in the order of the computation, with their scale."""
        blocks = [(block, 2**level) for level, block in enumerate(self.up_blocks)]
        last = blocks[-1][1]
        parts = [(self.conv_in, 1), (self.mid_block, 1), *blocks, (self.conv_out, last)]
        for part, scale in parts:
            for module in part.modules():
                if isinstance(module, CausalConv3d):
                    yield module, scale


class UpBlock(nn.Module):
    """Residual blocks through ``widths``, then an upsampling unless ``doubles_frames`` is None."""

    def __init__(self, widths: list[int], doubles_frames: bool | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.upsamplers = nn.ModuleList()
        if doubles_frames is not None:
            self.upsamplers.append(Upsample(widths[-1], doubles_frames))

    def forward(self, x: Tensor, history: History) -> Tensor:
        """[B, T, C, H, W] -> [B, T', C', H', W']."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x, history)
        return x


class Upsample(nn.Module):
    """Doubles height and width and, with ``doubles_frames``, makes two frames of one."""

    def __init__(self, channels: int, doubles_frames: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
        )
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if doubles_frames else None

    def forward(self, x: Tensor, history: History) -> Tensor:
        """[B, T, C, H, W] -> [B, T or 2T, C/2, 2H, 2W]."""
        return by_frame(self.resample, self._in_time(x, history))

    def _in_time(self, x: Tensor, history: History) -> Tensor:
        if self.time_conv is None:
            return x
        if self.time_conv not in history:
            # The first latent frame stays one frame, and this convolution never sees it:
            # with the second one it begins with zeros as its past.
            history[self.time_conv] = torch.zeros_like(x).expand(-1, WAN_CACHE_FRAMES, -1, -1, -1)
            return x
        batch, frames, *image = x.shape
        pairs: Tensor = self.time_conv(x, history)  # [B, T, 2 · C, H, W]
        return pairs.reshape(batch, 2 * frames, *image)
