"""A transformer block: linear attention, cross attention, and a convolutional feed-forward.

Tokens stay channels-last, [B, T, H, W, D], so that every 1×1 convolution and the temporal one
is a GEMM. The GEMMs take [B, T·H·W, C]: FP4 quantizes 3-D inputs only. With bfloat16 weights,
what is elementwise between two GEMMs is float32: fused into one kernel, that costs no memory
traffic and saves roundings. Residual sums are not, because they would be stored in float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sana_rt.export.modules.embed import modulated_norm
from sana_rt.export.modules.rope import rotary_grid, rotate
from sana_rt.model_spec import TransformerSpec

#: How the depthwise 3×3 convolution is written. "conv" is one Conv node between two transposes,
#: the faster on a CPU; "shifted" is nine multiply-adds in place, which TensorRT fuses with
#: bias, SiLU and gate into one kernel. Both compute the same.
Depthwise = Literal["conv", "shifted"]


class BlockState(NamedTuple):
    """What a block remembers of the tokens before its chunk."""

    s: Tensor  #: Σ v (R k)ᵀ, f32 [B, heads, d, d]
    k: Tensor  #: Σ k, f32 [B, heads, d]
    z: Tensor  #: the last frame of z, the input of the temporal convolution, [B, H, W, D]

    @classmethod
    def zeros(cls, spec: TransformerSpec, tokens: Tensor) -> BlockState:
        """The state before any token, for ``tokens`` [B, T, H, W, D]."""
        batch, heads, d = tokens.shape[0], spec.num_heads, spec.head_dim
        return cls(
            tokens.new_zeros(batch, heads, d, d, dtype=torch.float32),
            tokens.new_zeros(batch, heads, d, dtype=torch.float32),
            torch.zeros_like(tokens[:, 0]),
        )


class LinearAttention(nn.Module):
    """ReLU linear attention; rotary positions act on the numerator only.

    The reference normalises q by its RMS over all channels. That is one positive factor a
    token, which ReLU and rotation let through and which cancels between numerator and
    denominator (up to eps), so it is left out. A token whose q is all zero after ReLU gives
    0 / eps = 0 in both. k's factor does not cancel.
    """

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        self.eps = spec.attention_eps
        self.norm_eps = spec.qk_norm_eps
        self.to_q = nn.Linear(spec.width, spec.width, bias=False)
        self.to_k = nn.Linear(spec.width, spec.width, bias=False)
        self.to_v = nn.Linear(spec.width, spec.width, bias=False)
        self.norm_q = nn.RMSNorm(spec.width, eps=spec.qk_norm_eps)
        self.norm_k = nn.RMSNorm(spec.width, eps=spec.qk_norm_eps)
        self.to_out = nn.ModuleList([nn.Linear(spec.width, spec.width)])

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], state_s: Tensor, state_k: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T, H, W, D] and cos, sin [N, 1, d/2] to the output [B, N, D] and new sums."""
        frames = x.shape[1]
        x = x.flatten(1, 3)
        k = self.to_k(x)
        scale = inverse_rms(k, self.norm_eps)
        k = self._heads(F.relu(k * self.norm_k.weight).float() * scale)
        k_rotated = rotate(k, *rope).to(x.dtype)
        state_s = state_s + outer_sum(self._heads(self.to_v(x)), k_rotated, frames)
        state_k = state_k + k.sum(1)

        q = self._heads(F.relu(self.to_q(x) * self.norm_q.weight).float())
        q_rotated = rotate(q, *rope).to(x.dtype).transpose(1, 2)  # [B, h, N, d]
        numerator = (q_rotated @ state_s.transpose(2, 3).to(x.dtype)).transpose(1, 2)
        denominator = (q * state_k[:, None]).sum(-1, keepdim=True) + self.eps
        out = (numerator / denominator).to(x.dtype).flatten(2)
        return self.to_out[0](out), state_s, state_k

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads


def outer_sum(v: Tensor, k: Tensor, frames: int) -> Tensor:
    """Σ v kᵀ over the tokens of v and k [B, N, h, d] as float32 [B, h, d, d].

    A GEMM sums the tokens of one frame, in float32 inside but stored in the weights' type;
    frames are summed in float32. kᵀ is the transposed operand because the rotation writes k
    anyway and can do so in any order. Batch and frames are one axis, because TensorRT copies v
    for a GEMM whose batch has three.
    """
    k_frames, v_frames = (x.unflatten(1, (frames, -1)).flatten(0, 1) for x in (k, v))
    sums: Tensor = k_frames.permute(0, 2, 3, 1) @ v_frames.transpose(1, 2)  # [B·T, h, d, d]
    total: Tensor = sums.unflatten(0, (-1, frames)).float().sum(1)
    return total.transpose(2, 3)


class CrossAttention(nn.Module):
    """Softmax attention to the prompt; see :class:`PromptAttention` for what the keys carry.

    A token's q is normalised by one factor and has a bias. Both are applied to its logits, so
    that the fused kernel reads what the GEMM wrote and nothing writes q again.
    """

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.head_dim = spec.cross_head_dim
        self.eps = spec.qk_norm_eps
        width = spec.num_cross_heads * spec.cross_head_dim
        self.to_q = UnbiasedLinear(spec.width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, spec.width)])

    def forward(self, x: Tensor, text_k: Tensor, text_v: Tensor, text_bias: Tensor) -> Tensor:
        """Tokens [B, N, D], K and V [B, heads, S, d], bias [B, 1, 1, S] to [B, N, D]."""
        q = self.to_q(x)
        scale = inverse_rms(q + self.to_q.bias, self.eps)[:, None]  # [B, 1, N, 1]
        bias = self.to_q.bias.unflatten(0, (-1, 1, self.head_dim)).float()  # [heads, 1, d]
        of_bias = (text_k.float() * bias).sum(-1)[:, :, None]  # [B, heads, 1, S]
        q = q.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        of_q = (q @ text_k.transpose(2, 3)).float()  # [B, heads, N, S]
        logits = (of_q + of_bias) * scale + text_bias.float()
        weights = logits.softmax(-1).to(text_v.dtype)  # its sum is not bfloat16's
        out: Tensor = self.to_out[0]((weights @ text_v).transpose(1, 2).flatten(2))
        return out


class UnbiasedLinear(nn.Linear):
    """A linear layer whose bias is applied elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], without the bias."""
        return F.linear(x, self.weight)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1/RMS over the channels of x [..., C], float32 [..., 1]."""
    x = x.float()
    return torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)


class PointwiseConv(nn.Conv2d):
    """A 1×1 convolution on channels-last tokens: a GEMM."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, in_channels] to [B, N, out_channels]."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class DepthwiseConv(nn.Conv2d):
    """A depthwise 3×3 convolution within each frame, zero padded."""

    def __init__(self, channels: int, depthwise: Depthwise) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)
        self.depthwise = depthwise

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, W, C] to the same shape; "shifted" returns float32."""
        if self.depthwise == "shifted":
            return self._shifted(x)
        out = super().forward(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out.reshape(x.shape)

    def _shifted(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        assert self.bias is not None
        out = self.bias.float()
        for row in range(3):
            for column in range(3):
                shifted = padded[:, :, row : row - 2 or None, column : column - 2 or None]
                out = out + shifted.float() * self.weight[:, 0, row, column].float()
        return out


class TemporalConv(nn.Module):
    """z plus its convolution with three taps over frames; no frame right of the last is seen.

    One GEMM makes all three taps of every frame, then they are shifted and added. The left
    neighbour of the first frame comes from the state and needs its first tap only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Conv2d(channels, channels, (3, 1), bias=False).weight

    def forward(self, z: Tensor, state_z: Tensor) -> Tensor:
        """[B, T, H, W, D] and [B, H, W, D] to [B, T, H, W, D]."""
        grid = z.shape[1:4]
        taps = self.weight.flatten(2).permute(2, 0, 1)  # [3, D, D]: frames t-1, t, t+1
        products: Tensor = F.linear(z.flatten(1, 3), taps.flatten(0, 1)).unflatten(1, grid)
        before, here, after = products.chunk(3, dim=-1)
        first = F.linear(state_z.flatten(1, 2), taps[0]).unflatten(1, (1, *grid[1:]))
        before = torch.cat([first, before[:, :-1]], dim=1)
        after = F.pad(after[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
        return (z.float() + before + here + after).to(z.dtype)


class FeedForward(nn.Module):
    """Gated convolutional feed-forward with a temporal convolution at its end."""

    def __init__(self, spec: TransformerSpec, depthwise: Depthwise) -> None:
        super().__init__()
        hidden = 2 * spec.ffn_dim
        self.conv_inverted = PointwiseConv(spec.width, hidden, bias=True)
        self.conv_depth = DepthwiseConv(hidden, depthwise)
        self.conv_point = PointwiseConv(spec.ffn_dim, spec.width, bias=False)
        self.conv_temp = TemporalConv(spec.width)

    def forward(self, x: Tensor, state_z: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, H, W, D] and z before them to the output and the last frame of z."""
        grid = x.shape[1:4]
        hidden = F.silu(self.conv_inverted(x.flatten(1, 3))).unflatten(1, grid)
        value, gate = self.conv_depth(hidden).chunk(2, dim=-1)
        gated = (value * F.silu(gate)).to(x.dtype)
        z = self.conv_point(gated.flatten(1, 3)).unflatten(1, grid)
        return self.conv_temp(z, state_z), z[:, -1]


class Block(nn.Module):
    """One of the transformer's identical blocks.

    Cross attention takes its input without norm and adds its output without gate; the second
    modulated norm belongs to the feed-forward.
    """

    def __init__(self, spec: TransformerSpec, depthwise: Depthwise = "conv") -> None:
        super().__init__()
        self.norm_eps = spec.norm_eps
        self.attn1 = LinearAttention(spec)
        self.attn2 = CrossAttention(spec)
        self.ff = FeedForward(spec, depthwise)
        self.scale_shift_table = nn.Parameter(torch.randn(6, spec.width) / spec.width**0.5)

    def forward(
        self,
        tokens: Tensor,
        modulation: Tensor,
        text_k: Tensor,
        text_v: Tensor,
        text_bias: Tensor,
        rope_t: Tensor,
        rope_h: Tensor,
        rope_w: Tensor,
        state_s: Tensor,
        state_k: Tensor,
        state_z: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [B, T, H, W, D] and their state to the next tokens and the next state.

        Args:
            tokens: [B, T, H, W, D].
            modulation: [B, T, 6, D]; shift, scale, gate of attention, then of the feed-forward.
            text_k: Keys [B, heads, S, d] of :class:`Prompt`; ``text_v`` the values.
            text_v: See ``text_k``.
            text_bias: [B, 1, 1, S], added to the logits.
            rope_t: (cos, sin) f32 [T, pairs, 2]; ``rope_h`` [H, …] and ``rope_w`` [W, …] too.
            rope_h: See ``rope_t``.
            rope_w: See ``rope_t``.
            state_s: See :class:`BlockState`, as ``state_k`` and ``state_z``.
            state_k: See ``state_s``.
            state_z: See ``state_s``.
        """
        grid = tokens.shape[1:4]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
            self.scale_shift_table + modulation
        ).unbind(2)

        x = modulated_norm(tokens, shift_1, scale_1, self.norm_eps)
        rope = rotary_grid(rope_t, rope_h, rope_w)
        out, state_s, state_k = self.attn1(x, rope, state_s, state_k)
        gated = gate_1[:, :, None, None] * out.unflatten(1, grid)
        # Of one shape to all that read it, or TensorRT writes the sum once for each.
        flat = tokens.flatten(1, 3) + gated.flatten(1, 3)
        flat = flat + self.attn2(flat, text_k, text_v, text_bias)
        tokens = flat.unflatten(1, grid)

        x = modulated_norm(tokens, shift_2, scale_2, self.norm_eps)
        out, state_z = self.ff(x, state_z)
        return tokens + gate_2[:, :, None, None] * out, state_s, state_k, state_z
