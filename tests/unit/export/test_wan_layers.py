"""Layers of the Wan autoencoder: edges that whole clips do not reach."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch.nn import functional as F

from sana_rt import signatures
from sana_rt.errors import ExportError
from sana_rt.export.modules.wan_decoder import WanDecoder, WanDecoderFirst, to_bytes
from sana_rt.export.modules.wan_encoder import WanEncoder
from sana_rt.export.modules.wan_layers import CausalConv3d, History, RMSNorm
from sana_rt.graph_names import DECODER_FIRST
from sana_rt.model_spec import DCAE_VAE, LTX2_VAE, WAN_VAE, VAESpec, WanVAESpec

#: Two float32 sums of 54 products in another order, of values near 1.
TOLERANCE = 1e-5
THIN = msgspec.structs.replace(WAN_VAE, base_dim=4, num_res_blocks=1)


def convolution() -> CausalConv3d:
    torch.manual_seed(0)
    layer = CausalConv3d(2, 5).requires_grad_(False)
    torch.nn.init.normal_(layer.weight, std=0.2)
    torch.nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1, 1, 1), (1, 2, 4), (1, 6)])
def test_a_convolution_of_pieces_is_that_of_the_clip(pieces: tuple[int, ...]) -> None:
    layer, clip = convolution(), torch.randn(2, 7, 2, 4, 3)
    padded = F.pad(clip.transpose(1, 2), (1, 1, 1, 1, 2, 0))
    expected = F.conv3d(padded, layer.weight, layer.bias).transpose(1, 2)
    history: History = {}
    found = torch.cat([layer(piece, history) for piece in clip.split(pieces, dim=1)], dim=1)
    assert (found - expected).abs().max() <= TOLERANCE
    assert torch.equal(history[layer], clip[:, -2:])


def test_the_past_of_a_first_frame_is_zeros() -> None:
    layer, frame = convolution(), torch.randn(1, 1, 2, 4, 3)
    history: History = {}
    layer(frame, history)
    assert torch.equal(history[layer], torch.cat((torch.zeros_like(frame), frame), dim=1))


def test_a_norm_is_torchs_normalize_and_takes_black_pixels() -> None:
    norm = RMSNorm(6, 4).requires_grad_(False)
    torch.nn.init.uniform_(norm.gamma, 0.5, 1.5)
    image = torch.randn(2, 6, 3, 3)
    image[0, :, 1, 1] = 0
    image[0, :, 2, 2] = 1e-15  # its norm is below the least that divides
    expected = F.normalize(image, dim=1) * 6**0.5 * norm.gamma[..., 0]
    assert (norm(image) - expected).abs().max() <= TOLERANCE


def test_bytes_are_clamped_and_rounded_to_even() -> None:
    ties = torch.tensor([126.5, 127.5, 254.5])
    values = torch.cat((torch.tensor([-3.0, -1.0, 1.0, 3.0]), ties / 255 * 2 - 1))
    assert torch.equal((values[4:] + 1) / 2 * 255, ties)  # float32 meets these three exactly
    found = to_bytes(values.reshape(1, 1, 1, 1, -1).expand(1, 1, 3, 1, -1))
    assert found[0, 0, 0, :, 0].tolist() == [0, 0, 255, 255, 126, 128, 254]


def test_a_time_convolution_begins_with_zeros() -> None:
    """The caches of the two temporal upsamplings, whose first frame is not convolved."""
    decoder = WanDecoderFirst(THIN).requires_grad_(False)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    _, *caches = decoder(torch.randn(1, 16, 1, 2, 3))
    upsamplings = [
        index
        for index, (conv, _) in enumerate(decoder.decoder.caches())
        if conv.weight.shape[2:] == (3, 1, 1)
    ]
    assert len(upsamplings) == sum(THIN.temporal_downsample)
    for index, cache in enumerate(caches):
        assert bool((cache[:, 1] != 0).any()) == (index not in upsamplings)


@pytest.mark.parametrize(
    "spec",
    [
        THIN,
        msgspec.structs.replace(THIN, num_res_blocks=3, dim_mult=(1, 3, 2, 5)),
        msgspec.structs.replace(THIN, temporal_downsample=(True, False, True)),
    ],
)
def test_caches_are_what_the_signature_says(spec: WanVAESpec) -> None:
    decoder = WanDecoderFirst(spec).requires_grad_(False)
    for parameter in decoder.parameters():
        torch.nn.init.zeros_(parameter)
    _, *caches = decoder(torch.zeros(2, 16, 1, 2, 3))
    sizes = {"batch": 2, "height": 16, "width": 24}
    sizes |= {f"latent_height{scale}": 2 * n for scale, n in (("", 1), ("_x2", 2), ("_x4", 4))}
    sizes |= {f"latent_width{scale}": 3 * n for scale, n in (("", 1), ("_x2", 2), ("_x4", 4))}
    signature = signatures.autoencoder(DECODER_FIRST, spec, "float32")
    assert signature is not None
    _, *wanted = signature.outputs
    assert len(caches) == len(wanted) == signatures.wan_cache_count(spec)
    for cache, tensor in zip(caches, wanted, strict=True):
        tensor.check("test")
        assert tuple(cache.shape) == tuple(sizes.get(str(dim), dim) for dim in tensor.shape)


def test_a_missing_cache_is_noticed() -> None:
    decoder = WanDecoder(THIN)
    with pytest.raises(ValueError, match="shorter"):
        decoder(torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 2, 16, 2, 2))


@pytest.mark.parametrize("spec", [LTX2_VAE, DCAE_VAE])
@pytest.mark.parametrize("module", [WanDecoder, WanDecoderFirst, WanEncoder])
def test_other_autoencoders_are_refused(
    module: type[WanDecoder | WanDecoderFirst | WanEncoder], spec: VAESpec
) -> None:
    with pytest.raises(ExportError, match=f"kind '{spec.kind}'.*\n.*'wan'"):
        module(spec)


def test_constants_of_another_length_are_refused() -> None:
    spec = msgspec.structs.replace(THIN, latents_std=(1.0, 2.0))
    with pytest.raises(ExportError, match=r"latents_std has 2 values(.|\n)*16 latent channels"):
        WanDecoder(spec)
