"""Layers of the LTX-2 video autoencoder, on whole stretches of a clip [B, C, T, H, W].

Parameter names and shapes are those of diffusers' ``AutoencoderKLLTX2Video``.

Source: LTX-2 (arXiv 2601.03233) and diffusers' class, which is what it is tested against.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sana_rt.errors import ExportError
from sana_rt.model_spec import LTX2VAESpec, Padding, Scaling, VAESpec

_NORM_EPS: Final = 1e-8
#: By how much time, height and width change.
STRIDES: Final[dict[Scaling, tuple[int, int, int]]] = {
    "spatial": (1, 2, 2),
    "temporal": (2, 1, 1),
    "spatiotemporal": (2, 2, 2),
}


class Kind(NamedTuple):
    """What all layers of a half have in common."""

    causal: bool
    padding: Padding
    norm_eps: float


def check_spec(spec: VAESpec) -> None:
    """Raise :class:`ExportError` unless ``spec`` describes an LTX-2 autoencoder."""
    if not isinstance(spec, LTX2VAESpec):
        raise ExportError(f"The autoencoder is of kind {spec.kind!r}.", expected="'ltx2'.")


class Half(nn.Module):
    """An encoder or a decoder, with the statistics of latents that the checkpoint has."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        check_spec(spec)
        for name in ("latents_mean", "latents_std"):
            self.register_buffer(name, torch.empty(spec.latent_channels))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, f32 [C, 1, 1, 1]."""
        mean, std = (self.get_buffer(name) for name in ("latents_mean", "latents_std"))
        return mean.float().reshape(-1, 1, 1, 1), std.float().reshape(-1, 1, 1, 1)


def unfolded(x: Tensor, strides: tuple[int, int, int], *, columns_first: bool = False) -> Tensor:
    """Channels become pixels: [B, C · t · h · w, T, H, W] -> [B, C, T · t, H · h, W · w].

    With ``columns_first`` the last two of the channels' factors are in the other order.
    """
    batch, _, *size = x.shape
    t, h, w = strides
    factors, high, wide = ((t, w, h), 4, 3) if columns_first else ((t, h, w), 3, 4)
    x = x.reshape(batch, -1, *factors, *size).permute(0, 1, 5, 2, 6, high, 7, wide)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def folded(x: Tensor, strides: tuple[int, int, int], *, columns_first: bool = False) -> Tensor:
    """Pixels become channels: the inverse of :func:`unfolded`."""
    t, h, w = strides
    x = x.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))
    inner = (3, 7, 5) if columns_first else (3, 5, 7)
    return x.permute(0, 1, *inner, 2, 4, 6).flatten(1, 4)


def normed(x: Tensor) -> Tensor:
    """Each pixel's channels divided by their root mean square."""
    scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + _NORM_EPS)
    return x * scale.to(x.dtype)


class Conv3d(nn.Module):
    """A convolution of three frames, three rows and three columns.

    Time is padded with the first frame, twice, if it is ``causal``, else with the first and the
    last; rows and columns as ``padding`` says.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: Kind) -> None:
        super().__init__()
        self.frames = (2, 0) if kind.causal else (1, 1)
        self.reflects = kind.padding == "reflect"
        spatial = 0 if self.reflects else 1
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=(0, spatial, spatial))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T, H, W]."""
        x = F.pad(x, (0, 0, 0, 0, *self.frames), mode="replicate")
        if self.reflects:
            x = F.pad(x, (1, 1, 1, 1, 0, 0), mode="reflect")
        out: Tensor = self.conv(x)
        return out


class ResidualBlock(nn.Module):
    """Two convolutions, each behind a norm and SiLU, added to the input or its projection."""

    def __init__(self, in_channels: int, out_channels: int, kind: Kind) -> None:
        super().__init__()
        self.conv1 = Conv3d(in_channels, out_channels, kind)
        self.conv2 = Conv3d(out_channels, out_channels, kind)
        self.norm3 = self.conv_shortcut = None
        if in_channels != out_channels:
            self.norm3 = nn.LayerNorm(in_channels, eps=kind.norm_eps)
            self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T, H, W]."""
        inner = self.conv1(F.silu(normed(x)))
        inner = self.conv2(F.silu(normed(inner)))
        if self.norm3 is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.norm3(x.movedim(1, -1)).movedim(-1, 1))
        out: Tensor = inner + x
        return out


class ResidualBlocks(nn.Module):
    """Residual blocks of one width."""

    def __init__(self, channels: int, count: int, kind: Kind) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, kind) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same."""
        for block in self.resnets:
            x = block(x)
        return x
