"""The LTX-2 autoencoder against diffusers' AutoencoderKLLTX2Video: random weights, float32."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTX2Video
from torch import Tensor, nn

from sana_rt.decode_window import DecodeWindow
from sana_rt.export import autoencoders
from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.export.ltx2 import LTX2
from sana_rt.export.modules.ltx2_decoder import (
    LTX2Decoder,
    LTX2DecoderFirst,
    LTX2DecoderLater,
)
from sana_rt.export.modules.ltx2_encoder import LTX2Encoder
from sana_rt.export.modules.pixels import to_bytes
from sana_rt.export.seeded import SMALL
from sana_rt.export.verify import load_module
from sana_rt.model_spec import LTX2VAESpec
from sana_rt.runtime.inputs import Inputs, PromptEmbeds
from sana_rt.runtime.session import Session

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
    spec = SPECS[name]
    first = filled(LTX2DecoderFirst(spec, how), name)
    return played(first, filled(later(spec, how), name), z)


def played(first: LTX2DecoderFirst, later: LTX2DecoderLater, z: Tensor) -> Tensor:
    """Every call's frames, one after the other."""
    clip: list[Tensor] = []
    caches: list[Tensor] = []
    for new in first.window.calls(range(z.shape[2])):
        seen = first.window.sees(new, z.shape[2])
        part = z[:, :, seen.start : seen.stop]
        frames, *caches = later.pixels(part, *caches) if new.start else first.pixels(part)
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


def test_the_player_decodes_in_windows_where_memory_is_short(folder_720p: Path) -> None:
    """What its graphs make, call by call, is what the modules make of the same weights."""
    with Session.open(folder_720p / "bundle", threads=1) as session:
        autoencoder = autoencoders.find(session.model.vae)
        request = session.request(
            num_frames=161, height=64, width=96, num_inference_steps=1, guidance_scale=1
        )
        shape = (1, SMALL.text.max_tokens, SMALL.transformer.caption_channels)
        embeds = PromptEmbeds(np.zeros(shape, np.float32), np.ones(shape[:2], np.int64))
        inputs = Inputs(prompt_embeds=(embeds,))
        plan = session.plan(request, inputs)
        least = replace(plan, apart=len(plan.phases) - 1).expected_bytes
    made: list[Tensor] = []
    with Session.open(folder_720p / "bundle", threads=1, max_memory=least - 1) as session:
        clip = session.generate(
            request, inputs, on_chunk=lambda chunk: made.append(torch.from_numpy(chunk.latents))
        )
        calls = list(clip)
    assert [len(frames) for frames in calls] == [9, *[8] * 19]
    weights = open_checkpoint(folder_720p / "checkpoint").part("vae")
    assert autoencoder is not None
    modules = [load_module(one, weights) for one in autoencoder.graphs("float32")[1:3]]
    with torch.no_grad():
        expected = played(*modules, made[0])
    steps = np.abs(np.concatenate(calls).astype(int) - to_bytes(expected)[0].numpy())
    assert steps.max() <= 1
    assert np.concatenate(calls).std() > 1, "a flat picture would prove nothing"
