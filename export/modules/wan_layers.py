"""Layers of the Wan 2.1 video autoencoder, written for streams.

A clip passes in pieces of a frame or a few, [B, T, C, H, W]: frames before channels, so that
all but the causal convolutions are images in a batch. What a causal convolution needs of the
pieces before is in a :class:`History`. Parameter names and shapes are those of diffusers'
``AutoencoderKLWan``.

Source: Wan (arXiv 2503.20314) and the released weights of Wan 2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sana_rt.errors import ExportError
from sana_rt.model_spec import VAESpec, WanVAESpec
from sana_rt.signatures import WAN_CACHE_FRAMES

#: By convolution, the two frames before the next one, [B, 2, C, H, W]. A convolution that is not
#: in it has seen nothing yet: its past is zeros. None in its place: nothing will follow.
History: TypeAlias = "dict[CausalConv3d, Tensor]"


def check_spec(spec: VAESpec) -> None:
    """Raise :class:`ExportError` unless ``spec`` describes a Wan autoencoder in full."""
    if not isinstance(spec, WanVAESpec):
        raise ExportError(
            f"The autoencoder is of kind {spec.kind!r}.",
            expected="'wan'.",
            remedy="export a checkpoint that uses the Wan 2.1 autoencoder, such as the 480p one.",
        )
    for name in ("latents_mean", "latents_std"):
        given = len(getattr(spec, name))
        if given != spec.latent_channels:
            raise ExportError(
                f"The autoencoder's {name} has {given} values.",
                expected=f"one for each of the {spec.latent_channels} latent channels.",
            )


def channel_vector(values: tuple[float, ...], like: Tensor) -> Tensor:
    """``values`` by channel as float32 [C, 1, 1, 1] beside ``like``."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).reshape(-1, 1, 1, 1)


def by_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``layer``, which takes images [N, C, H, W], on each frame of x [B, T, C, H, W]."""
    out: Tensor = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return out


class CausalConv3d(nn.Module):
    """A convolution over this frame and the two before it; spatially zero padded.

    For each frame it is a 2-D convolution over the channels of all frames under the kernel:
    the same sums, and faster on a CPU than the 3-D form.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int] = (3, 3, 3)
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.padding = kernel[1] // 2, kernel[2] // 2

    def forward(self, x: Tensor, history: History | None = None) -> Tensor:
        """[B, T, C, H, W] -> [B, T, C', H, W]; ``history`` then has the last two frames seen."""
        past = None if history is None else history.get(self)
        if history is None or past is None:
            return self._first(x, history)
        frames = torch.cat((past, x), dim=1)
        history[self] = frames[:, -WAN_CACHE_FRAMES:]
        windows = (frames[:, t : t + WAN_CACHE_FRAMES + 1] for t in range(x.shape[1]))
        return torch.stack([self._conv2d(seen, self.weight) for seen in windows], dim=1)

    def _first(self, x: Tensor, history: History | None) -> Tensor:
        assert x.shape[1] == 1, "a clip begins with one frame"
        if history is not None:
            history[self] = torch.cat((torch.zeros_like(x), x), dim=1)
        # The frames before it are zeros, and what their taps add is nothing.
        return self._conv2d(x, self.weight[:, :, -1:]).unsqueeze(1)

    def _conv2d(self, seen: Tensor, weight: Tensor) -> Tensor:
        """The frames under the kernel [B, taps, C, H, W] -> [B, C', H, W]."""
        kernel = weight.transpose(1, 2).flatten(1, 2)  # [C', taps · C, kh, kw]
        return F.conv2d(seen.flatten(1, 2), kernel, self.bias, padding=self.padding)


class PointwiseConv3d(nn.Module):
    """A linear map of each pixel's channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C, H, W] -> [B, T, C', H, W]."""
        return by_frame(lambda image: F.conv2d(image, self.weight.squeeze(2), self.bias), x)


class RMSNorm(nn.Module):
    """x / max(‖x‖, 1e-12) · sqrt(C) · gamma, the norm over the channels of a pixel, in float32.

    ``rank`` is that of gamma, [C, 1, 1] or [C, 1, 1, 1]; the values mean the same.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, *[1] * (rank - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C, H, W] -> the same shape."""
        norm = torch.linalg.vector_norm(x, dim=-3, keepdim=True, dtype=torch.float32)
        scaled = x * (x.shape[-3] ** 0.5 / norm.clamp(min=1e-12))
        out: Tensor = scaled.to(x.dtype) * self.gamma.reshape(-1, 1, 1)
        return out


class ResidualBlock(nn.Module):
    """Two times norm, SiLU, causal convolution; around them the input, projected if need be."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(in_channels, 4)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = RMSNorm(out_channels, 4)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        projects = in_channels != out_channels
        self.conv_shortcut = PointwiseConv3d(in_channels, out_channels) if projects else None

    def forward(self, x: Tensor, history: History | None = None) -> Tensor:
        """[B, T, C, H, W] -> [B, T, C', H, W]."""
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = self.conv1(F.silu(self.norm1(x)), history)
        x = self.conv2(F.silu(self.norm2(x)), history)
        return shortcut + x


class AttentionBlock(nn.Module):
    """Softmax attention of one head between the pixels of an image, added to the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, 3)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        query, key, value = self.to_qkv(self.norm(x)).flatten(2).chunk(3, dim=1)  # [N, C, HW]
        scores = (query * x.shape[1] ** -0.5).transpose(1, 2) @ key
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(x.dtype)
        mixed = value @ weights.transpose(1, 2)
        out: Tensor = x + self.proj(mixed.unflatten(2, x.shape[2:]))
        return out


class MidBlock(nn.Module):
    """A residual block, attention within each frame, a residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])

    def forward(self, x: Tensor, history: History | None = None) -> Tensor:
        """[B, T, C, H, W] -> the same shape."""
        x = self.resnets[0](x, history)
        x = by_frame(self.attentions[0], x)
        out: Tensor = self.resnets[1](x, history)
        return out
