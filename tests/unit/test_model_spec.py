"""The published configurations, and the frame counts and sizes a model takes."""

from __future__ import annotations

import inspect

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sana_rt.errors import RequestError
from sana_rt.model_spec import (
    LTX2_VAE,
    PRESETS,
    WAN_VAE,
    ModelSpec,
    contradictions,
    differences,
)

WAN = PRESETS["sana-video-2b-480p"]
LTX2 = PRESETS["sana-video-2b-720p"]
LONG = PRESETS["longsana-2b-480p"]

# Parameters of the transformer, counted on diffusers' module on the meta device.
PARAMETERS = {
    "sana-video-2b-480p": 2_056_862_144,
    "sana-video-2b-720p": 2_057_148_928,
    "sana-video-2b-720p-dcaev": 2_056_718_752,
    "longsana-2b-480p": 2_056_862_144,
}


@pytest.mark.parametrize("name", PRESETS)
def test_transformer_has_the_published_number_of_parameters(name: str) -> None:
    import torch
    from diffusers import SanaVideoTransformer3DModel

    spec = PRESETS[name].transformer
    with torch.device("meta"):
        module = SanaVideoTransformer3DModel(
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
        )
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[name]


def test_wan_constants_are_the_defaults_of_diffusers() -> None:
    from diffusers import AutoencoderKLWan

    parameters = inspect.signature(AutoencoderKLWan.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert list(WAN_VAE.latents_mean) == defaults["latents_mean"]
    assert list(WAN_VAE.latents_std) == defaults["latents_std"]
    assert WAN_VAE.base_dim == defaults["base_dim"]
    assert WAN_VAE.dim_mult == tuple(defaults["dim_mult"])
    assert WAN_VAE.num_res_blocks == defaults["num_res_blocks"]
    assert WAN_VAE.temporal_downsample == tuple(defaults["temperal_downsample"])
    assert WAN_VAE.latent_channels == defaults["z_dim"]


def test_rope_splits_a_head_as_published() -> None:
    assert WAN.transformer.rope_dims == (40, 36, 36)


@given(st.integers(1, 64).map(lambda half: 2 * half))
def test_rope_uses_all_of_a_head_in_pairs(head_dim: int) -> None:
    spec = msgspec.structs.replace(WAN.transformer, head_dim=head_dim)
    assert sum(spec.rope_dims) == head_dim
    assert all(dim % 2 == 0 for dim in spec.rope_dims)


@pytest.mark.parametrize(
    ("spec", "frames", "latent"), [(WAN, 1, 1), (WAN, 81, 21), (LTX2, 81, 11), (LONG, 961, 241)]
)
def test_latent_frames(spec: ModelSpec, frames: int, latent: int) -> None:
    assert spec.latent_frames(frames) == latent


@pytest.mark.parametrize(
    ("spec", "frames", "nearest"),
    [
        (WAN, 80, "77 or 81"),
        (WAN, 0, "1 or 5"),
        (WAN, -3, "1 or 5"),
        (LTX2, 85, "81 or 89"),
        (WAN, 4092, "4089 or 4093"),
        (WAN, 10**12, "4093"),
    ],
)
def test_a_frame_count_between_two_names_both(spec: ModelSpec, frames: int, nearest: str) -> None:
    with pytest.raises(RequestError, match=f"num_frames is {frames}") as caught:
        spec.latent_frames(frames)
    assert nearest in caught.value.remedy
    for allowed in nearest.split(" or "):
        spec.latent_frames(int(allowed))


def test_latent_size() -> None:
    assert WAN.size_multiples == (16, 16)
    assert WAN.latent_size(480, 832) == (60, 104)
    assert LTX2.latent_size(704, 1280) == (22, 40)


@pytest.mark.parametrize(
    ("height", "width", "said", "nearest"),
    [
        (472, 832, "height is 472", "464 or 480"),
        (480, 830, "width is 830", "816 or 832"),
        (0, 832, "height is 0", "16 or 32"),
        (480, -16, "width is -16", "16 or 32"),
        (16_383, 832, "height is 16383", "16368 or 16384"),
        (2**43 + 1, 832, "height is 8796093022209", "ask for 16384."),
    ],
)
def test_a_size_that_does_not_divide(height: int, width: int, said: str, nearest: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        WAN.latent_size(height, width)
    assert nearest in caught.value.remedy


def test_unknown_fields_are_refused_with_their_path() -> None:
    raw = msgspec.to_builtins(WAN)
    raw["vae"]["latent_chanels"] = 16
    with pytest.raises(msgspec.ValidationError, match=r"`latent_chanels` .*vae"):
        msgspec.convert(raw, ModelSpec)


def test_specifications_are_immutable() -> None:
    with pytest.raises(AttributeError):
        WAN.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_no_preset_contradicts_itself(preset: ModelSpec) -> None:
    assert list(contradictions(preset)) == []


def test_a_contradiction_names_field_value_and_what_fits() -> None:
    preset = PRESETS["sana-video-2b-480p"]
    wide = msgspec.structs.replace(preset.transformer, out_channels=32, patch_size=(4, 2, 2))
    patch, channels = contradictions(msgspec.structs.replace(preset, transformer=wide))
    assert patch == ("transformer.patch_size", [4, 2, 2], "patches of 1 latent frame: [1, h, w]")
    assert channels == (
        "transformer.out_channels", 32, "16, which transformer.in_channels is",
    )  # fmt: skip


def test_differences_are_named_by_their_path() -> None:
    one, other = PRESETS["sana-video-2b-480p"], PRESETS["longsana-2b-480p"]
    assert list(differences(one, one)) == []
    found = {path: (ours, theirs) for path, ours, theirs in differences(one, other)}
    assert found["transformer.causal"] == ("False", "True")
    assert found["name"] == ("'sana-video-2b-480p'", "'longsana-2b-480p'")
    assert found["sampling.solver"] == ("'dpmpp_2m'", "'renoise'")
    assert "vae" not in {path.partition(".")[0] for path in found}
    (kind,) = differences(LTX2_VAE, WAN_VAE)
    assert kind == ("kind", "ltx2", "wan")
    long = msgspec.structs.replace(one.text, instruction="x" * 1000)
    ((_, shown, _),) = differences(long, one.text)
    assert len(shown) < 70
