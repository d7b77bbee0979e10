"""A transformer in the original layout: `.pth`, or LongSANA's with ``generator`` on top.

The names are those that SANA-Video's training code gives its parameters; a fused tensor holds
the rows of its parts one below the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click
import torch
from safetensors.torch import load_file

Layout = Literal["original", "longsana"]

_NAMES = {
    "patch_embedding": "x_embedder.proj",
    "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_embed.linear": "t_block.1",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "caption_norm": "attention_y_norm",
    "proj_out": "final_layer.linear",
    "scale_shift_table": "final_layer.scale_shift_table",
}
_BLOCK_NAMES = {
    "scale_shift_table": "scale_shift_table",
    "attn1.norm_q": "attn.q_norm",
    "attn1.norm_k": "attn.k_norm",
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.norm_q": "cross_attn.q_norm",
    "attn2.norm_k": "cross_attn.k_norm",
    "attn2.to_out.0": "cross_attn.proj",
    "ff.conv_inverted": "mlp.inverted_conv.conv",
    "ff.conv_depth": "mlp.depth_conv.conv",
    "ff.conv_point": "mlp.point_conv.conv",
    "ff.conv_temp": "mlp.t_conv",
    "attn1.to_q": "attn.qkv",  # the parts of a fused tensor, in their order
    "attn1.to_k": "attn.qkv",
    "attn1.to_v": "attn.qkv",
    "attn2.to_k": "cross_attn.kv_linear",
    "attn2.to_v": "cross_attn.kv_linear",
}
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--layout", type=click.Choice(["original", "longsana"]), default="original")
def main(checkpoint: Path, output: Path, layout: Layout) -> None:
    """Rename the tensors of CHECKPOINT/transformer and save them as OUTPUT."""
    save(
        load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"),
        output,
        layout,
    )


def save(tensors: Mapping[str, torch.Tensor], path: Path, layout: Layout) -> None:
    """Save diffusers' tensors under the original names."""
    renamed = to_original(tensors)
    if layout == "original":
        torch.save({"state_dict": renamed}, path)
    else:
        torch.save({"generator": {f"model.{name}": renamed[name] for name in renamed}}, path)


def to_original(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Diffusers' tensors under the original names, projections fused."""
    order = {part: index for index, part in enumerate(_BLOCK_NAMES)}
    parts: dict[str, list[torch.Tensor]] = {}
    for name in sorted(tensors, key=lambda name: order.get(_part(name), -1)):
        parts.setdefault(_original_name(name), []).append(tensors[name])
    return {name: torch.cat(rows) if len(rows) > 1 else rows[0] for name, rows in parts.items()}


def _original_name(name: str) -> str:
    block = _BLOCK.fullmatch(name)
    part = _part(name)
    table = _NAMES if block is None else _BLOCK_NAMES
    prefix = "" if block is None else f"blocks.{block[1]}."
    suffix = name.removeprefix("" if block is None else f"transformer_blocks.{block[1]}.")
    return prefix + table[part] + suffix.removeprefix(part)


def _part(name: str) -> str:
    """The module a tensor belongs to: its name without the block and ``weight`` or ``bias``."""
    block = _BLOCK.fullmatch(name)
    inner = name if block is None else block[2]
    return inner.removesuffix(".weight").removesuffix(".bias")


if __name__ == "__main__":
    main()
