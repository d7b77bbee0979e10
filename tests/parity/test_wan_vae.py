"""The Wan autoencoder against diffusers' AutoencoderKLWan: random weights, float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor, nn

from sana_rt.bundle import Bundle
from sana_rt.export.modules.pixels import to_bytes
from sana_rt.export.modules.wan_decoder import WanDecoder, WanDecoderFirst
from sana_rt.export.modules.wan_encoder import WanEncoder
from sana_rt.export.modules.wan_layers import History
from sana_rt.export.seeded import SMALL, seeded_tensor
from sana_rt.model_spec import WAN_VAE, WanVAESpec

#: Largest difference of frames (from -1 to 1) and of normalised latents. Two float32
#: evaluations that sum in another order differ by about 2^-24 times the square root of the
#: terms of a sum (27 · 64 at most here), and that over some thirty layers: 1e-5. The factor 10
#: leaves room for layers that amplify.
TOLERANCE = 1e-4
#: Share of bytes that may differ, by one: a frame's value moves by TOLERANCE · 127.5 steps at
#: most, and so over a rounding edge with twice that probability.
BYTES_TOLERANCE = 2 * 127.5 * TOLERANCE

#: The released structure, thin, and one of other depth, strides and widths.
SPECS = {
    "released": msgspec.structs.replace(WAN_VAE, base_dim=8),
    "shallow": msgspec.structs.replace(
        WAN_VAE,
        base_dim=12,
        dim_mult=(1, 3),
        num_res_blocks=1,
        temporal_downsample=(True,),
        temporal_stride=2,
        spatial_stride=2,
    ),
}
#: That of the bundle whose graphs are run; its weights are those of its checkpoint.
BUNDLED = "bundled"
M = TypeVar("M", bound=nn.Module)
BATCH, FRAMES, HEIGHT, WIDTH = 2, 6, 3, 5  # of latents


def spec_of(name: str) -> WanVAESpec:
    return SMALL.vae if name == BUNDLED else SPECS[name]


@cache
def reference(name: str) -> AutoencoderKLWan:
    spec = spec_of(name)
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=spec.base_dim,
        z_dim=spec.latent_channels,
        dim_mult=list(spec.dim_mult),
        num_res_blocks=spec.num_res_blocks,
        temperal_downsample=list(spec.temporal_downsample),
        scale_factor_temporal=spec.temporal_stride,
        scale_factor_spatial=spec.spatial_stride,
    )
    if name == BUNDLED:
        tensors = vae.state_dict()
        vae.load_state_dict({key: seeded_tensor(key, tensors[key].shape, 0) for key in tensors})
        return vae.eval().requires_grad_(False)
    for parameter, values in vae.named_parameters():
        # As made, norms multiply by one and add nothing, which would hide their absence.
        if parameter.endswith("gamma"):
            nn.init.uniform_(values, 0.5, 1.5)
        if parameter.endswith("bias"):
            nn.init.normal_(values, std=0.3)
    return vae.eval().requires_grad_(False)


def filled(module: M, name: str) -> M:
    tensors = reference(name).state_dict()
    module.load_state_dict({key: tensors[key] for key in module.state_dict()}, strict=True)
    return module.eval().requires_grad_(False)


def by_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1, 1)


def latents(spec: WanVAESpec, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, spec.latent_channels, FRAMES, HEIGHT, WIDTH)
    return torch.randn(shape, generator=generator)


def images(spec: WanVAESpec, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = HEIGHT * spec.spatial_stride, WIDTH * spec.spatial_stride
    return torch.randint(0, 256, (BATCH, *size, 3), dtype=torch.uint8, generator=generator)


@cache
def expected_frames(name: str) -> Tensor:
    """The one-shot decode as [B, T, 3, H, W], from -1 to 1."""
    spec = spec_of(name)
    z = latents(spec) * by_channel(spec.latents_std) + by_channel(spec.latents_mean)
    frames: Tensor = reference(name).decode(z).sample.transpose(1, 2)
    return frames


@cache
def expected_latents(name: str) -> Tensor:
    spec = spec_of(name)
    clip = (images(spec).permute(0, 3, 1, 2).float() / 127.5 - 1).unsqueeze(2)
    mode = reference(name).encode(clip).latent_dist.mode()
    return (mode - by_channel(spec.latents_mean)) / by_channel(spec.latents_std)


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


def assert_bytes_agree(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype == torch.uint8
    steps = (found.int() - expected.int()).abs()
    assert steps.max() <= 1
    assert (steps != 0).float().mean() <= BYTES_TOLERANCE


def stream(first: WanDecoderFirst, later: WanDecoder, z: Tensor) -> Tensor:
    """The clip's bytes, one latent frame a call, as the runtime decodes it."""
    frames, *caches = first(z[:, :, :1])
    clip = [frames]
    for index in range(1, z.shape[2]):
        frames, *caches = later(z[:, :, index : index + 1], *caches)
        clip.append(frames)
    return torch.cat(clip, dim=1)


@pytest.mark.parametrize("name", SPECS)
def test_the_modules_have_the_tensors_of_the_checkpoint(name: str) -> None:
    modules = WanDecoder(SPECS[name]), WanEncoder(SPECS[name])
    own = [(key, value.shape) for each in modules for key, value in each.state_dict().items()]
    expected = {key: value.shape for key, value in reference(name).state_dict().items()}
    assert len(own) == len(expected)
    assert dict(own) == expected
    assert WanDecoderFirst(SPECS[name]).state_dict().keys() == modules[0].state_dict().keys()


@pytest.mark.parametrize("name", SPECS)
def test_frames_of_a_stream_are_those_of_the_clip(name: str) -> None:
    decoder = filled(WanDecoder(SPECS[name]), name)
    history: History = {}
    z = latents(SPECS[name]).split(1, dim=2)
    frames = torch.cat([decoder.decode(frame, history) for frame in z], dim=1)
    expected = expected_frames(name)
    assert expected.std() > 0.1  # neither black nor clamped everywhere
    assert frames.shape[1] == 1 + (FRAMES - 1) * SPECS[name].temporal_stride
    assert difference(frames.clamp(-1, 1), expected) <= TOLERANCE


@pytest.mark.parametrize("name", SPECS)
def test_bytes_of_a_stream_are_those_of_the_clip(name: str) -> None:
    modules = filled(WanDecoderFirst(SPECS[name]), name), filled(WanDecoder(SPECS[name]), name)
    expected = (expected_frames(name) * 0.5 + 0.5).mul(255).round().to(torch.uint8)
    found = stream(*modules, latents(SPECS[name]))
    assert_bytes_agree(found, expected.permute(0, 1, 3, 4, 2))


def test_where_a_clip_is_cut_makes_no_difference() -> None:
    first = filled(WanDecoderFirst(SPECS["released"]), "released")
    later = filled(WanDecoder(SPECS["released"]), "released")
    z = latents(SPECS["released"])
    frames, *caches = first(z[:, :, :1])
    pieces = [frames]
    for piece in z[:, :, 1:].split((2, 3), dim=2):
        frames, *caches = later(piece, *caches)
        pieces.append(frames)
    assert torch.equal(torch.cat(pieces, dim=1), stream(first, later, z))


@pytest.mark.parametrize("name", SPECS)
def test_latents_of_an_image(name: str) -> None:
    found = filled(WanEncoder(SPECS[name]), name)(images(SPECS[name]))
    expected = expected_latents(name)
    assert found.shape == (BATCH, SPECS[name].latent_channels, 1, HEIGHT, WIDTH)
    assert difference(found, expected) <= TOLERANCE


def test_bfloat16_loses_no_more_than_in_the_reference() -> None:
    """Rounding to bfloat16 at other places may cost as much, but not a quarter more."""
    spec, clip = SPECS["released"], expected_frames("released")
    vae = AutoencoderKLWan.from_config(reference("released").config)
    vae.load_state_dict(reference("released").state_dict())
    z = latents(spec) * by_channel(spec.latents_std) + by_channel(spec.latents_mean)
    theirs = vae.bfloat16().decode(z.bfloat16()).sample.transpose(1, 2).float()
    decoder = filled(WanDecoder(spec), "released").bfloat16()
    history: History = {}
    ours = decoder.decode(latents(spec), history).float().clamp(-1, 1)
    assert {past.dtype for past in history.values()} == {torch.bfloat16}
    assert (ours - clip).abs().mean() <= 1.25 * (theirs - clip).abs().mean()


class Session:
    """A graph of a bundle, loaded as the runtime does."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        graph = bundle.manifest.variant("fp32").graphs[name]
        self.names = [tensor.name for tensor in graph.inputs]
        self._session = ort.InferenceSession(
            bundle.path(graph.path), providers=["CPUExecutionProvider"]
        )

    def __call__(self, *inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        outputs: list[NDArray[np.generic]] = self._session.run(
            None, dict(zip(self.names, inputs, strict=True))
        )
        return outputs


@pytest.fixture(scope="module")
def sessions(small_bundle: Path) -> dict[str, Session]:
    bundle = Bundle.open(small_bundle)
    names = ("vae_decoder_first", "vae_decoder", "vae_encoder")
    return {name: Session(bundle, name) for name in names}


def test_the_graphs_decode_the_clip(sessions: dict[str, Session]) -> None:
    """At a size and a batch that the graphs were not traced with."""
    z = latents(SMALL.vae).numpy()
    frames, *caches = sessions["vae_decoder_first"](z[:, :, :1])
    clip = [frames]
    for index in range(1, FRAMES):
        frames, *caches = sessions["vae_decoder"](z[:, :, index : index + 1], *caches)
        clip.append(frames)
    expected = expected_frames(BUNDLED)
    assert expected.std() > 0.1
    found = torch.from_numpy(np.concatenate(clip, axis=1))
    assert_bytes_agree(found, to_bytes(expected))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 2)])
def test_the_graphs_decode_other_sizes(
    sessions: dict[str, Session], height: int, width: int
) -> None:
    spec = SMALL.vae
    z = latents(spec)[:1, :, :2].repeat(1, 1, 1, 2, 1)[..., :height, :width].contiguous()
    modules = filled(WanDecoderFirst(spec), BUNDLED), filled(WanDecoder(spec), BUNDLED)
    _, *caches = sessions["vae_decoder_first"](z[:, :, :1].numpy())
    frames, *_ = sessions["vae_decoder"](z[:, :, 1:].numpy(), *caches)
    assert_bytes_agree(torch.from_numpy(frames), stream(*modules, z)[:, 1:])


def test_the_graph_encodes_an_image(sessions: dict[str, Session]) -> None:
    (found,) = sessions["vae_encoder"](images(SMALL.vae).numpy())
    assert difference(torch.from_numpy(found), expected_latents(BUNDLED)) <= TOLERANCE
