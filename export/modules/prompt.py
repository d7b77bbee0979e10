"""What cross attention needs of a prompt, for every block at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sana_rt.export.modules.embed import MLP
from sana_rt.model_spec import TransformerSpec

MASKED_LOGIT = -10000.0  # the reference's bias on padded tokens


class PromptAttention(nn.Module):
    """Keys and values of one block's cross attention.

    The keys carry all that is constant in the block's logits: the weight of its query norm
    and 1/√d. What is left for the block is one RMS factor a token.
    """

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.head_dim = spec.cross_head_dim
        width = spec.num_cross_heads * spec.cross_head_dim
        self.to_k = nn.Linear(spec.width, width)
        self.to_v = nn.Linear(spec.width, width)
        self.norm_k = nn.RMSNorm(width, eps=spec.qk_norm_eps)
        self.norm_q = nn.RMSNorm(width, eps=spec.qk_norm_eps)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text [B, S, D] to keys and values [B, heads, S, d]."""
        k = self.norm_k(self.to_k(text)) * (self.norm_q.weight * self.head_dim**-0.5)
        return self._heads(k), self._heads(self.to_v(text))

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads.transpose(1, 2)


class Prompt(nn.Module):
    """Text encoder states to the keys and values of all blocks, and the mask as a bias."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.caption_projection = MLP(spec.caption_channels, spec.width, nn.GELU("tanh"))
        self.caption_norm = nn.RMSNorm(spec.width, eps=spec.caption_norm_eps)
        self.transformer_blocks = nn.ModuleList(
            nn.ModuleDict({"attn2": PromptAttention(spec)}) for _ in range(spec.num_layers)
        )

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text states [B, S, Ct] and mask i64 [B, S] (1 = keep) to K, V and bias.

        Returns:
            ``text_k`` and ``text_v`` [L, B, heads, S, d], ``text_bias`` [B, 1, 1, S].
        """
        dtype = self.caption_norm.weight.dtype
        text = self.caption_norm(self.caption_projection(hidden_states))
        pairs = [block.get_submodule("attn2")(text) for block in self.transformer_blocks]
        text_k, text_v = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        text_bias = (1 - attention_mask.to(dtype)) * MASKED_LOGIT
        return text_k, text_v, text_bias[:, None, None]
