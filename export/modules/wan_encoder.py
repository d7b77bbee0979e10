"""The Wan 2.1 autoencoder's encoder for one image, the first frame of image-to-video."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from sana_rt.export.modules.wan_layers import (
    CausalConv3d,
    MidBlock,
    PointwiseConv3d,
    ResidualBlock,
    RMSNorm,
    by_frame,
    channel_vector,
    check_spec,
)
from sana_rt.model_spec import WanVAESpec


class WanEncoder(nn.Module):
    """The graph ``vae_encoder``.

    The parameters are the checkpoint's ``encoder.*`` and ``quant_conv.*``, all of them.
    """

    def __init__(self, spec: WanVAESpec) -> None:
        super().__init__()
        check_spec(spec)
        self.spec = spec
        self.encoder = Encoder3d(spec)
        self.quant_conv = PointwiseConv3d(2 * spec.latent_channels, 2 * spec.latent_channels)

    def forward(self, image: Tensor) -> Tensor:
        """u8 [B, H, W, 3] -> f32 [B, C, 1, h, w]: the posterior's mode, normalised."""
        frame = (image.float() / 255 * 2 - 1).permute(0, 3, 1, 2).unsqueeze(1)
        moments = self.quant_conv(self.encoder(frame.to(self.quant_conv.weight.dtype)))
        mode, _log_variance = moments.transpose(1, 2).float().chunk(2, dim=1)
        mean = channel_vector(self.spec.latents_mean, mode)
        latents: Tensor = (mode - mean) / channel_vector(self.spec.latents_std, mode)
        return latents


class Encoder3d(nn.Module):
    """A frame to the moments of its latent frame."""

    def __init__(self, spec: WanVAESpec) -> None:
        super().__init__()
        widths = [spec.base_dim * mult for mult in (1, *spec.dim_mult)]
        self.conv_in = CausalConv3d(3, widths[0])
        self.down_blocks = nn.ModuleList()
        halving: list[bool | None] = [*spec.temporal_downsample, None]
        for (a, b), halves_frames in zip(pairwise(widths), halving, strict=True):
            inner = [a] + [b] * spec.num_res_blocks
            self.down_blocks.extend(ResidualBlock(*pair) for pair in pairwise(inner))
            if halves_frames is not None:
                self.down_blocks.append(Downsample(b, halves_frames))
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = RMSNorm(widths[-1], 4)
        self.conv_out = CausalConv3d(widths[-1], 2 * spec.latent_channels)

    def forward(self, frame: Tensor) -> Tensor:
        """[B, 1, 3, H, W] -> [B, 1, 2C, h, w]."""
        x = self.conv_in(frame)
        for block in self.down_blocks:
            x = block(x)
        moments: Tensor = self.conv_out(F.silu(self.norm_out(self.mid_block(x))))
        return moments


class Downsample(nn.Module):
    """Halves height and width of a clip's first frame; the padding is below and to the right.

    ``time_conv`` is the checkpoint's; it begins with the second frame and is not computed.
    """

    def __init__(self, channels: int, halves_frames: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        )
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1)) if halves_frames else None

    def forward(self, frame: Tensor) -> Tensor:
        """[B, 1, C, H, W] -> [B, 1, C, H/2, W/2]."""
        return by_frame(self.resample, frame)
