"""The ends of the transformer: timestep and patch embedding, final layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sana_rt.model_spec import TransformerSpec

TIMESTEP_CHANNELS = 256
TIMESTEP_MAX_PERIOD = 10000.0
FINAL_NORM_EPS = 1e-6  # fixed in the reference, whatever the blocks have


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, in_channels: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, width)
        self.activation = activation
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_channels] of any dtype to [..., width]."""
        x = x.to(self.linear_1.weight.dtype)
        out: Tensor = self.linear_2(self.activation(self.linear_1(x)))
        return out


class TimestepEmbed(nn.Module):
    """Timesteps to the modulation that all blocks share ("adaLN-single")."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        mlp = MLP(TIMESTEP_CHANNELS, spec.width, nn.SiLU())
        self.time_embed = nn.ModuleDict(
            {
                "emb": nn.ModuleDict({"timestep_embedder": mlp}),
                "linear": nn.Linear(spec.width, 6 * spec.width),
            }
        )
        self.frequency = _frequency()  # no buffer, as the tables of RotaryTables

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps f32 [B, T], 0..1000, to modulation [B, T, 6, D] and embedding [B, T, D]."""
        angle = timestep[..., None] * self.frequency.to(timestep.device)
        sinusoid = torch.cat([angle.cos(), angle.sin()], dim=-1)
        embedding = self.time_embed.get_submodule("emb.timestep_embedder")(sinusoid)
        modulation = self.time_embed["linear"](F.silu(embedding))
        return modulation.unflatten(-1, (6, -1)), embedding


def _frequency() -> Tensor:
    """128 frequencies, 10000^(-i/128), evaluated in float32 as the reference does.

    A last-bit difference in a frequency is one of 6e-5 in the angle at t = 1000.
    """
    half = TIMESTEP_CHANNELS // 2
    index = torch.arange(half, dtype=torch.float32, device="cpu")
    return torch.exp(index * -math.log(TIMESTEP_MAX_PERIOD) / half)


class PatchEmbed(nn.Module):
    """Latents to tokens: a convolution whose kernel is its stride, written as one GEMM."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        patch = spec.patch_size
        self.patch_embedding = nn.Conv3d(spec.in_channels, spec.width, patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents f32 [B, C, frames, height, width] to tokens [B, T, H, W, D]."""
        conv = self.patch_embedding
        pt, ph, pw = conv.kernel_size
        patches = latents.to(conv.weight.dtype)
        patches = patches.unflatten(4, (-1, pw)).unflatten(3, (-1, ph)).unflatten(2, (-1, pt))
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return F.linear(patches, conv.weight.flatten(1), conv.bias)


class FinalLayer(nn.Module):
    """Tokens to the flow velocity (noise - x0) of the latents."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.patch_size = spec.patch_size
        self.scale_shift_table = nn.Parameter(torch.randn(2, spec.width) / spec.width**0.5)
        self.proj_out = nn.Linear(spec.width, math.prod(spec.patch_size) * spec.out_channels)

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Tokens [B, T, H, W, D], embedding [B, T, D] to f32 [B, C, frames, height, width]."""
        shift, scale = (self.scale_shift_table + embedding[:, :, None]).unbind(2)
        x: Tensor = self.proj_out(modulated_norm(tokens, shift, scale, FINAL_NORM_EPS))
        x = x.unflatten(-1, (*self.patch_size, -1))  # [B, T, H, W, pt, ph, pw, C]
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # [B, C, T, pt, H, ph, W, pw]
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3).float()


def modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm of tokens [B, T, H, W, D], scaled and shifted frame by frame ([B, T, D])."""
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=eps)
    shift, scale = shift.float()[:, :, None, None], scale.float()[:, :, None, None]
    return (normed * (1 + scale) + shift).to(tokens.dtype)
