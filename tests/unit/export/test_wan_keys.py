"""Names of the original Wan autoencoder, against diffusers' conversion and diffusers' model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from sana_rt.export.modules.wan_keys import original_to_diffusers


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


def original_names() -> set[str]:
    """The tensors of Wan2.1_VAE.pth: 4 levels, 2 residual blocks a level (decoder: 3)."""
    names = {*affine("conv1", "conv2"), *half("encoder"), *half("decoder")}
    for block in (0, 1, 3, 4, 6, 7, 9, 10):
        names |= set(residual(f"encoder.downsamples.{block}", projects=block in (3, 6)))
    for block in (0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14):
        names |= set(residual(f"decoder.upsamples.{block}", projects=block == 4))
    for layer in ("encoder.downsamples.2", "encoder.downsamples.5", "encoder.downsamples.8"):
        names |= set(affine(f"{layer}.resample.1"))
    for layer in ("decoder.upsamples.3", "decoder.upsamples.7", "decoder.upsamples.11"):
        names |= set(affine(f"{layer}.resample.1"))
    for layer in ("encoder.downsamples.5", "encoder.downsamples.8"):
        names |= set(affine(f"{layer}.time_conv"))
    for layer in ("decoder.upsamples.3", "decoder.upsamples.7"):
        names |= set(affine(f"{layer}.time_conv"))
    return names


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
