"""Names of the original Wan autoencoder, against diffusers' conversion and diffusers' model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file

from sana_rt.export.checkpoint import Parts, open_checkpoint
from sana_rt.export.seeded import SMALL
from sana_rt.export.wan_keys import original_to_diffusers


def affine(*layers: str) -> Iterator[str]:
    for layer in layers:
        yield from (f"{layer}.weight", f"{layer}.bias")


def residual(block: str, *, projects: bool = False) -> Iterator[str]:
    yield from (f"{block}.residual.0.gamma", f"{block}.residual.3.gamma")
    yield from affine(f"{block}.residual.2", f"{block}.residual.6")
    if projects:
        yield from affine(f"{block}.shortcut")


def half(name: str) -> Iterator[str]:
    yield from affine(f"{name}.conv1", f"{name}.head.2")
    yield f"{name}.head.0.gamma"
    yield from residual(f"{name}.middle.0")
    yield f"{name}.middle.1.norm.gamma"
    yield from affine(f"{name}.middle.1.to_qkv", f"{name}.middle.1.proj")
    yield from residual(f"{name}.middle.2")


def original_names(num_res_blocks: int = 2) -> set[str]:
    """The tensors of Wan2.1_VAE.pth: four levels, numbered through without regard to them."""
    names = {*affine("conv1", "conv2"), *half("encoder"), *half("decoder")}
    resamplings = []
    down = up = 0
    for level in range(4):
        for block in range(num_res_blocks):
            wider = block == 0 and level in (1, 2)
            names |= set(residual(f"encoder.downsamples.{down}", projects=wider))
            down += 1
        for block in range(num_res_blocks + 1):
            wider = block == 0 and level == 1
            names |= set(residual(f"decoder.upsamples.{up}", projects=wider))
            up += 1
        if level < 3:
            resamplings += [f"encoder.downsamples.{down}", f"decoder.upsamples.{up}"]
            down, up = down + 1, up + 1
    names |= {name for layer in resamplings for name in affine(f"{layer}.resample.1")}
    # In time the encoder halves at its second and third level, the decoder doubles at its
    # first and second.
    halving, doubling = resamplings[2::2], resamplings[1:4:2]
    return names | {name for layer in halving + doubling for name in affine(f"{layer}.time_conv")}


@pytest.fixture(scope="module")
def diffusers_names() -> set[str]:
    with torch.device("meta"):
        return set(AutoencoderKLWan().state_dict())


def test_every_name_is_translated_as_diffusers_does() -> None:
    names = original_names()
    converted = convert_wan_vae_to_diffusers({name: name for name in names})
    assert {original_to_diffusers(name): name for name in names} == converted


def test_the_translations_are_the_tensors_of_the_model(diffusers_names: set[str]) -> None:
    assert {original_to_diffusers(name) for name in original_names()} == diffusers_names


def test_diffusers_names_stay(diffusers_names: set[str]) -> None:
    assert {original_to_diffusers(name) for name in diffusers_names} == diffusers_names


def test_unknown_names_stay() -> None:
    assert original_to_diffusers("encoder.extra.conv1.weight") == "encoder.extra.conv1.weight"


def test_levels_of_another_depth() -> None:
    """With one residual block fewer, a level of the decoder is two of them and an upsampling."""
    names = [f"decoder.upsamples.{index}.x" for index in range(4)]
    assert [original_to_diffusers(name, num_res_blocks=1) for name in names] == [
        "decoder.up_blocks.0.resnets.0.x",
        "decoder.up_blocks.0.resnets.1.x",
        "decoder.up_blocks.0.upsamplers.0.x",
        "decoder.up_blocks.1.resnets.0.x",
    ]


def test_an_original_file_is_opened(small_checkpoint: Path, tmp_path: Path) -> None:
    blocks = SMALL.vae.num_res_blocks
    tensors = load_file(small_checkpoint / "vae/diffusion_pytorch_model.safetensors")
    names = {original_to_diffusers(name, blocks): name for name in original_names(blocks)}
    path = tmp_path / "Wan2.1_VAE.pth"
    torch.save({names[name]: tensor for name, tensor in tensors.items()}, path)
    vae = open_checkpoint(small_checkpoint, preset=SMALL, parts=Parts(vae=path)).vae
    assert vae is not None
    assert set(vae) == set(tensors)
    assert all(torch.equal(vae.load(name), tensors[name]) for name in tensors)
