"""The transformer against diffusers' SanaVideoTransformer3DModel, random weights, float32."""

from __future__ import annotations

import pytest
import torch
from diffusers import SanaVideoTransformer3DModel
from torch import Tensor

from sana_rt.export.modules.transformer import Transformer, parts
from sana_rt.model_spec import TransformerSpec

#: Largest difference over largest output. Two float32 evaluations of the same formulas in
#: another order differ by about sqrt(number of roundings in a row, some 300) · 2^-24 = 1e-6;
#: the factor 20 covers the growth through the blocks' nonlinearities.
TOLERANCE = 2e-5

WAN = TransformerSpec(
    in_channels=16,
    out_channels=16,
    patch_size=(1, 2, 2),
    num_layers=3,
    num_heads=3,
    head_dim=28,  # pairs 6, 4, 4: uneven as 20, 18, 18
    num_cross_heads=2,
    cross_head_dim=42,
    caption_channels=40,
    ffn_dim=252,
    rope_max_positions=64,
)


def reference(spec: TransformerSpec, seed: int = 0) -> SanaVideoTransformer3DModel:
    torch.manual_seed(seed)
    model = SanaVideoTransformer3DModel(
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        num_attention_heads=spec.num_heads,
        attention_head_dim=spec.head_dim,
        num_layers=spec.num_layers,
        num_cross_attention_heads=spec.num_cross_heads,
        cross_attention_head_dim=spec.cross_head_dim,
        cross_attention_dim=spec.width,
        caption_channels=spec.caption_channels,
        mlp_ratio=spec.ffn_dim / spec.width,
        patch_size=spec.patch_size,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=spec.rope_max_positions,
    ).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.7)  # some are negative
        elif parameter.ndim == 1 or "table" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def test_x() -> None:
    torch.set_num_threads(1)
    model = reference(WAN)
    ours = Transformer(WAN).eval()
    ours.load_state_dict(model.state_dict(), strict=True)
    lat = torch.randn(2, 16, 3, 6, 10)
    text = torch.randn(2, 7, 40)
    mask = torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0]])
    t = torch.tensor([999.0, 340.0])
    ref = model(lat, text, t, encoder_attention_mask=mask, return_dict=False)[0]
    out, _ = ours(lat, t[:, None].expand(2, 3), text, mask)
    err = (out - ref).abs().max() / ref.abs().max()
    print(err, ref.abs().max())
    assert err < TOLERANCE
