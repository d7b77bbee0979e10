"""Names of the original SANA-Video checkpoints, translated to the diffusers names used here.

Source of the table: the conversion script of diffusers, ``convert_sana_video_to_diffusers.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sana_rt.export.weights import LazyTensor, Weights

#: A tensor that only the original layout has.
ORIGINAL_MARK: Final = "x_embedder.proj.weight"
#: The same tensor under its diffusers name.
DIFFUSERS_MARK: Final = "patch_embedding.weight"

_PREFIXES: Final = {
    "x_embedder.proj.": "patch_embedding.",
    "t_embedder.mlp.0.": "time_embed.emb.timestep_embedder.linear_1.",
    "t_embedder.mlp.2.": "time_embed.emb.timestep_embedder.linear_2.",
    "t_block.1.": "time_embed.linear.",
    "y_embedder.y_proj.fc1.": "caption_projection.linear_1.",
    "y_embedder.y_proj.fc2.": "caption_projection.linear_2.",
    "attention_y_norm.": "caption_norm.",
    "final_layer.linear.": "proj_out.",
    "final_layer.scale_shift_table": "scale_shift_table",
}
_BLOCK_PREFIXES: Final = {
    "scale_shift_table": "scale_shift_table",
    "attn.q_norm.": "attn1.norm_q.",
    "attn.k_norm.": "attn1.norm_k.",
    "attn.proj.": "attn1.to_out.0.",
    "cross_attn.q_linear.": "attn2.to_q.",
    "cross_attn.q_norm.": "attn2.norm_q.",
    "cross_attn.k_norm.": "attn2.norm_k.",
    "cross_attn.proj.": "attn2.to_out.0.",
    "mlp.inverted_conv.conv.": "ff.conv_inverted.",
    "mlp.depth_conv.conv.": "ff.conv_depth.",
    "mlp.point_conv.conv.": "ff.conv_point.",
    "mlp.t_conv.": "ff.conv_temp.",
}
# One tensor whose rows are several: the original fuses projections.
_FUSED: Final = {
    "attn.qkv.": ("attn1.to_q.", "attn1.to_k.", "attn1.to_v."),
    "cross_attn.kv_linear.": ("attn2.to_k.", "attn2.to_v."),
}
# The unconditional caption of training, image position tables, and a head unused at inference.
_DROPPED: Final = ("y_embedder.y_embedding", "pos_embed", "logvar_linear.")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def to_diffusers(weights: Weights) -> Weights:
    """The transformer's tensors under their diffusers names, fused projections split.

    Names that the table does not know are kept, so that the check of names reports them.
    """
    renamed: dict[str, LazyTensor] = {}
    for name in weights:
        if not name.startswith(_DROPPED):
            renamed.update(_translated(name, weights[name]))
    return Weights(renamed, weights.files)


def to_original(layer: str) -> str:
    """The name of the original's layer that has the weights of a layer of diffusers."""
    block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", f"{layer}.")
    if block is None:
        return _replace_prefix(f"{layer}.", _reversed(_PREFIXES)).removesuffix(".")
    fused = {part: whole for whole, parts in _FUSED.items() for part in parts}
    rest = _replace_prefix(block[2], _reversed(_BLOCK_PREFIXES) | fused)
    return f"blocks.{block[1]}.{rest}".removesuffix(".")


def _reversed(table: dict[str, str]) -> dict[str, str]:
    return {new: old for old, new in table.items()}


def _translated(name: str, tensor: LazyTensor) -> Iterator[tuple[str, LazyTensor]]:
    block = _BLOCK.fullmatch(name)
    if block is None:
        yield _replace_prefix(name, _PREFIXES), tensor
        return
    prefix, rest = f"transformer_blocks.{block[1]}.", block[2]
    for fused, parts in _FUSED.items():
        if rest.startswith(fused) and tensor.shape[0] % len(parts) == 0:
            rows = tensor.shape[0] // len(parts)
            for index, part in enumerate(parts):
                split = tensor.rows(index * rows, (index + 1) * rows)
                yield prefix + part + rest.removeprefix(fused), split
            return
    yield prefix + _replace_prefix(rest, _BLOCK_PREFIXES), tensor


def _replace_prefix(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
