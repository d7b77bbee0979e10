"""Rotary position embedding over time, height and width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sana_rt.model_spec import TransformerSpec

ROPE_THETA = 10000.0


class RotaryTables(nn.Module):
    """Cosines and sines of token positions, gathered from float32 tables.

    Each axis rotates its own adjacent pairs of a head's channels: pair j of an axis with
    ``a`` channels turns by ``position · 10000^(-2j/a)`` (SANA-Video, after Wan 2.1).
    """

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        # No buffers: those would follow the module to bfloat16, too coarse for angles, and to
        # the meta device, from where no checkpoint brings them back.
        self.tables = [_table(spec.rope_max_positions, channels) for channels in spec.rope_dims]

    def forward(
        self, frame_index: Tensor, row_index: Tensor, column_index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positions i64 [frames], [rows], [columns] to (cos, sin) [positions, pairs, 2] each."""
        t, h, w = self.tables
        return (
            t.to(frame_index.device).index_select(0, frame_index),
            h.to(row_index.device).index_select(0, row_index),
            w.to(column_index.device).index_select(0, column_index),
        )


def _table(positions: int, channels: int) -> Tensor:
    with torch.device("cpu"):
        pair = torch.arange(0, channels, 2, dtype=torch.float64)
        position = torch.arange(positions, dtype=torch.float64)
    angle = torch.outer(position, ROPE_THETA ** (-pair / channels))
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def rotary_grid(rope_t: Tensor, rope_h: Tensor, rope_w: Tensor) -> tuple[Tensor, Tensor]:
    """Per-axis tables to the cos and sin of every token, [T·H·W, 1, d/2] each."""
    grid = (rope_t.shape[0], rope_h.shape[0], rope_w.shape[0], -1, 2)
    table = torch.cat(
        [
            rope_t[:, None, None].expand(grid),
            rope_h[None, :, None].expand(grid),
            rope_w[None, None].expand(grid),
        ],
        dim=3,
    ).flatten(0, 2)
    cos, sin = table.unsqueeze(1).unbind(-1)
    return cos, sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent channel pairs of ``x`` [B, N, heads, d] by the angles of :func:`rotary_grid`.

    The result is float32, the type of the tables.
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
