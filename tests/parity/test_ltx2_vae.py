"""The LTX-2 autoencoder against diffusers' AutoencoderKLLTX2Video: random weights, float32."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, TypeVar

import msgspec
import pytest
import torch
from diffusers import AutoencoderKLLTX2Video
from torch import Tensor, nn

from sana_rt.decode_window import DecodeWindow
from sana_rt.export.ltx2 import LTX2
from sana_rt.export.modules.ltx2_decoder import (
    LTX2Decoder,
    LTX2DecoderFirst,
    LTX2DecoderLater,
)
from sana_rt.export.modules.ltx2_encoder import LTX2Encoder
from sana_rt.model_spec import LTX2VAESpec

#: Largest difference of frames, most of which are between -1 and 1, and of normalised latents.
#: About thirty layers, each within 2^-24 times the square root of the 27 · 64 terms of its sums:
#: 1e-5. The factor 10 leaves room for layers that amplify.
TOLERANCE: Final = 1e-4

V2_0: Final = LTX2VAESpec(
    latent_channels=16,
    temporal_stride=8,
    spatial_stride=32,
    block_out_channels=(32, 64, 64, 128),
    layers_per_block=(1, 2, 1, 1, 1),
    decoder_block_out_channels=(16, 32, 64),
    decoder_layers_per_block=(1, 1, 2, 1),
)
#: Scalings, factors, residuals and padding of 2.3; and of a width that changes in front of one.
V2_3: Final = msgspec.structs.replace(
    V2_0,
    decoder_block_out_channels=(24, 48, 48, 64),
    decoder_layers_per_block=(1, 1, 1, 1, 1),
    upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    upsample_residual=(False,) * 4,
    upsample_factor=(2, 2, 1, 2),
    decoder_padding="zeros",
)
CAUSAL: Final = msgspec.structs.replace(V2_0, decoder_causal=True, encoder_causal=False)
SPECS: Final = {"2.0": V2_0, "2.3": V2_3, "causal": CAUSAL}
HEIGHT, WIDTH = 3, 5  # of latents
M = TypeVar("M", bound=nn.Module)


def config(spec: LTX2VAESpec) -> dict[str, Any]:
    given = LTX2(spec).config()
    return {key: value for key, value in given.items() if not key.startswith("_")}


@cache
def reference(name: str) -> AutoencoderKLLTX2Video:
    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Video(**config(SPECS[name]))
    for parameter, values in vae.named_parameters():
        if parameter.endswith("bias"):
            nn.init.normal_(values, std=0.2)
        elif "norm3" in parameter:
            nn.init.uniform_(values, 0.5, 1.5)
        else:  # as made, each convolution shrinks what it reads
            values.data *= 2
    nn.init.normal_(vae.latents_mean, std=0.5)
    nn.init.uniform_(vae.latents_std, 0.5, 2)
    return vae.eval().requires_grad_(False)


def filled(module: M, name: str) -> M:
    tensors = reference(name).state_dict()
    module.load_state_dict({key: tensors[key] for key in module.state_dict()}, strict=True)
    return module.eval().requires_grad_(False)


def latents(spec: LTX2VAESpec, frames: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(batch, spec.latent_channels, frames, HEIGHT, WIDTH, generator=generator)


def raw(name: str, normalised: Tensor) -> Tensor:
    vae = reference(name)
    by_channel = (vae.latents_std.reshape(-1, 1, 1, 1), vae.latents_mean.reshape(-1, 1, 1, 1))
    return normalised * by_channel[0] + by_channel[1]


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert expected.std() > 0.1, "a flat picture would prove nothing"
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("name", SPECS)
def test_the_modules_have_the_tensors_of_the_checkpoint(name: str) -> None:
    expected = {key: tuple(value.shape) for key, value in reference(name).state_dict().items()}
    assert LTX2(SPECS[name]).tensor_shapes() == expected


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_of_a_clip(name: str, frames: int) -> None:
    z = latents(SPECS[name], frames, batch=2)
    found = filled(LTX2Decoder(SPECS[name]), name).decode(z)
    expected = reference(name).decode(raw(name, z)).sample.transpose(1, 2)
    assert found.shape[1] == 8 * (frames - 1) + 1
    assert difference(found, expected) <= TOLERANCE


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("frames", [1, 9])
def test_latents_of_a_clip(name: str, frames: int) -> None:
    spec, generator = SPECS[name], torch.Generator().manual_seed(frames)
    shape = (2, frames, HEIGHT * 32, WIDTH * 32, 3)
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    encoder = filled(LTX2Encoder(spec), name)
    found = encoder(clip[:, 0]) if frames == 1 else encoder.encode(clip)
    pixels = clip.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    mode = reference(name).encode(pixels).latent_dist.mode()
    assert found.shape[2] == (frames - 1) // 8 + 1
    assert difference(raw(name, found), mode) <= TOLERANCE


def window(latent_frames: int, lookahead: int, blend: int, lookback: int = 1) -> DecodeWindow:
    return DecodeWindow(
        latent_frames=latent_frames,
        frames=8 * latent_frames,
        first_latent_frames=latent_frames + 1,
        first_frames=8 * latent_frames + 1,
        lookahead=lookahead,
        caches=int(blend > 0),
        lookback=lookback,
        blend=blend,
    )


class AsDiffusers(LTX2DecoderLater):
    """diffusers leaves out the last frame of a later window and shows its first, one late."""

    def new(self, frames: Tensor) -> Tensor:
        return frames[:, :-1]


def in_windows(
    name: str, z: Tensor, how: DecodeWindow, later: type[LTX2DecoderLater] = LTX2DecoderLater
) -> Tensor:
    """A clip as the runtime decodes it, before frames become bytes."""
    spec, clip = SPECS[name], []
    modules = filled(LTX2DecoderFirst(spec, how), name), filled(later(spec, how), name)
    caches: list[Tensor] = []
    for new in how.calls(range(z.shape[2])):
        seen = how.sees(new, z.shape[2])
        part = z[:, :, seen.start : seen.stop]
        frames, *caches = modules[1].pixels(part, *caches) if new.start else modules[0].pixels(part)
        clip.append(frames)
    return torch.cat(clip, dim=1)


@cache
def long_clip() -> tuple[Tensor, Tensor]:
    """Thirteen latent frames, and what they are at once."""
    z = latents(V2_0, 13)
    return z, reference("2.0").decode(raw("2.0", z)).sample.transpose(1, 2)


@pytest.mark.parametrize(("latent_frames", "lookahead"), [(1, 1), (2, 2), (3, 3)])
def test_windows_are_those_of_diffusers(latent_frames: int, lookahead: int) -> None:
    """With its alignment of frames; tiles of 16 frames every 8 are its default."""
    z, _ = long_clip()
    vae = reference("2.0")
    vae.use_framewise_decoding = True
    vae.tile_sample_min_num_frames = 8 * (latent_frames + lookahead)
    vae.tile_sample_stride_num_frames = 8 * latent_frames
    try:
        expected = vae.decode(raw("2.0", z)).sample.transpose(1, 2)
    finally:
        vae.use_framewise_decoding = False
    how = window(latent_frames, lookahead, 8 * lookahead)
    found = in_windows("2.0", z, how, AsDiffusers)
    assert difference(found, expected) <= TOLERANCE


def test_a_window_of_the_whole_clip_is_the_clip() -> None:
    z, expected = long_clip()
    found = in_windows("2.0", z, window(12, 0, 0))
    assert difference(found, expected) <= TOLERANCE


def test_windows_that_see_more_come_nearer_to_the_clip() -> None:
    z, expected = long_clip()
    widths = [window(1, 1, 8), window(1, 2, 8, lookback=2), window(2, 4, 16, lookback=3)]
    errors = [(in_windows("2.0", z, how) - expected).square().mean().item() for how in widths]
    late = (in_windows("2.0", z, widths[0], AsDiffusers) - expected).square().mean().item()
    assert sorted(errors, reverse=True) == errors
    assert errors[0] < late, "frames of diffusers' windows are one frame late"
