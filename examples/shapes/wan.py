"""A small Wan autoencoder, and its forward pass over a whole clip at once.

diffusers' ``AutoencoderKLWan`` walks through a clip in chunks with feature caches. Its
convolutions are causal, so the same numbers come out of one pass over all frames, which is
what training needs; only the temporal resampling treats the first frame apart.
"""

from __future__ import annotations

import types

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample
from torch import nn

Z_DIM = 16
CONFIG = {
    "base_dim": 8,
    "z_dim": Z_DIM,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}


#: Where the log-variance of a latent starts. With unit noise (0) on latents of unit size the
#: decoder sees little else, and learns several times slower.
_LOG_VARIANCE = -4.0


def build(mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    """The autoencoder with random weights; ``mean`` and ``std`` of its latents by channel."""
    vae = AutoencoderKLWan(
        **CONFIG, latents_mean=mean or [0.0] * Z_DIM, latents_std=std or [1.0] * Z_DIM
    )
    nn.init.constant_(vae.quant_conv.bias[Z_DIM:], _LOG_VARIANCE)
    return vae


def whole_clip(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Make ``encode`` and ``decode`` below run ``vae`` over all frames in one pass."""
    for module in vae.modules():
        if isinstance(module, WanResample):
            module.forward = types.MethodType(_resample, module)
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return vae


def encode(vae: AutoencoderKLWan, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance [B, Z, T, h, w] of clips [B, 3, 4T-3, 8h, 8w] in -1 to 1."""
    clips = clips.contiguous(memory_format=torch.channels_last_3d)
    mean, log_variance = vae.quant_conv(vae.encoder(clips)).float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Clips, not clamped, of un-normalised latents."""
    latents = latents.contiguous(memory_format=torch.channels_last_3d)
    return vae.decoder(vae.post_quant_conv(latents)).float()


def normalised(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Latents with the mean 0 and the standard deviation 1 that the transformer sees."""
    mean, std = _statistics(vae, latents)
    return (latents - mean) / std


def denormalised(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`normalised`."""
    mean, std = _statistics(vae, latents)
    return latents * std + mean


def _statistics(vae: AutoencoderKLWan, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).to(like).view(shape)
    return mean, torch.tensor(vae.config.latents_std).to(like).view(shape)


def _resample(self: WanResample, x: torch.Tensor) -> torch.Tensor:
    """Resample all frames: the first passes the temporal convolutions by, as in Wan 2.1."""
    if self.mode == "upsample3d" and x.shape[2] > 1:
        pairs = self.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))
        x = torch.cat([x[:, :, :1], pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
    size = x.shape[:3:2]
    x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, size).transpose(1, 2)
    if self.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)
    return x
