"""Gemma-2, the text encoder: token ids to the hidden states after the last norm.

Parameter names and shapes are those of transformers' ``Gemma2Model``. No tensor is made at
construction but parameters, so the module can be built on the meta device and filled with
``load_state_dict(..., assign=True)``.

Source: Gemma 2 (arXiv 2408.00118) and the released configuration of gemma-2-2b-it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sana_rt.model_spec import TextSpec


class Gemma2Encoder(nn.Module):
    """``input_ids`` i64 [B, N], ``attention_mask`` i64 [B, N] (1 = keep) -> f32 [B, N, hidden].

    Padding is on the right. It never reaches a valid token (attention is causal); its own
    hidden states are finite and mean nothing.
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = ScaledEmbedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode; the result is float32 in every weight type."""
        x = self.embed_tokens(input_ids)
        rope = rope_table(input_ids.shape[1], self.spec, x)
        full, sliding = allowed_keys(attention_mask, self.spec.sliding_window)
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, full if index % 2 else sliding)
        hidden_states: Tensor = self.norm(x)
        return hidden_states.float()


class ScaledEmbedding(nn.Embedding):
    """Rows times sqrt(hidden), a factor that is first rounded to the weights' type.

    ``factor_dtype`` is that type where the weights have been widened since.
    """

    factor_dtype: torch.dtype | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name nn.Embedding gives it
        """Token ids [B, N] -> [B, N, hidden]."""
        rows = super().forward(input)
        # a tensor, not a Python number: with a number torch multiplies before it rounds
        dtype = self.factor_dtype or rows.dtype
        factor = torch.full((), self.embedding_dim**0.5, dtype=dtype, device=rows.device)
        return rows * factor.to(rows.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) · (1 + weight), in float32, rounded once."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight.float())).to(x.dtype)


class Layer(nn.Module):
    """Attention and GeGLU, each between two norms."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.self_attn = Attention(spec)
        self.mlp = MLP(spec)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], allowed: Tensor) -> Tensor:
        """[B, N, hidden] -> [B, N, hidden]."""
        attended = self.self_attn(self.input_layernorm(x), rope, allowed)
        x = x + self.post_attention_layernorm(attended)
        transformed = self.mlp(self.pre_feedforward_layernorm(x))
        out: Tensor = x + self.post_feedforward_layernorm(transformed)
        return out


class MLP(nn.Module):
    """GeGLU with the tanh form of GELU."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, hidden] -> [B, N, hidden]."""
        gate = F.gelu(self.gate_proj(x), approximate="tanh")
        down: Tensor = self.down_proj(gate * self.up_proj(x))
        return down


class Attention(nn.Module):
    """Causal attention of grouped queries, with rotary positions and soft-capped logits."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.groups = spec.num_heads // spec.num_kv_heads
        self.head_dim = spec.head_dim
        self.scale = spec.query_pre_attn_scalar**-0.5
        self.softcap = spec.attn_logit_softcap
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, spec.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], allowed: Tensor) -> Tensor:
        """[B, N, hidden], ``allowed`` bool [B, 1, 1, N, N] -> [B, N, hidden]."""
        q = rotate(self._heads(self.q_proj(x), self.groups), rope)  # [B, kv, groups, N, d]
        k = rotate(self._heads(self.k_proj(x), 1), rope)  # [B, kv, 1, N, d]
        v = self._heads(self.v_proj(x), 1)
        weights = self._weights(q @ k.transpose(-1, -2), allowed)
        attended = (weights @ v).permute(0, 3, 1, 2, 4).flatten(2)
        out: Tensor = self.o_proj(attended)
        return out

    def _heads(self, x: Tensor, groups: int) -> Tensor:
        """[B, N, kv * groups * d] -> [B, kv, groups, N, d]."""
        batch, length, _ = x.shape
        return x.view(batch, length, -1, groups, self.head_dim).permute(0, 2, 3, 1, 4)

    def _weights(self, scores: Tensor, allowed: Tensor) -> Tensor:
        """Scale, cap, mask and softmax in float32; the result has the scores' type."""
        logits: Tensor = scores.float() * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        # a finite value: a padded query may have no key at all, and must not become NaN
        logits = logits.masked_fill(~allowed, torch.finfo(torch.float32).min)
        return logits.softmax(-1).to(scores.dtype)


def allowed_keys(attention_mask: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Which keys a query may see, bool [B, 1, 1, N, N]: all before it, and the last ``window``."""
    position = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    distance = position[:, None] - position
    full = (distance >= 0) & attention_mask.bool()[:, None, None, None]
    return full, full & (distance < window)


def rope_table(length: int, spec: TextSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [N, d] of position · theta^(-2j/d), in the type of ``like``."""
    pairs = torch.arange(0, spec.head_dim, 2, dtype=torch.float32, device=like.device)
    frequencies = spec.rope_theta ** (-pairs / spec.head_dim)
    position = torch.arange(length, dtype=torch.float32, device=like.device)
    angles = position[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).to(like.dtype), torch.cat((-sin, sin), -1).to(like.dtype)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate channel j with channel j + d/2 by the angle of x's position."""
    cos, signed_sin = rope
    half = x.shape[-1] // 2
    return x * cos + torch.cat((x[..., half:], x[..., :half]), -1) * signed_sin
