"""The registry of autoencoders."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from sana_rt.errors import CheckpointFormatError
from sana_rt.export import autoencoders
from sana_rt.export.ltx2 import LTX2
from sana_rt.export.seeded import SMALL
from sana_rt.model_spec import DCAE_VAE, LTX2_VAE, WAN_VAE, ModelSpec, VAESpec


def written(folder: Path, config: dict[str, object]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("spec", [WAN_VAE, SMALL.vae, LTX2_VAE], ids=["wan", "small", "ltx2"])
def test_a_configuration_that_is_written_is_read_back(spec: VAESpec, tmp_path: Path) -> None:
    autoencoder = autoencoders.find(spec)
    assert autoencoder is not None
    assert autoencoders.read_spec(written(tmp_path, autoencoder.config())) == spec


def test_every_kind_is_found_by_the_specification_of_its_kind() -> None:
    for kind, known in autoencoders.AUTOENCODERS.items():
        spec = {"wan": WAN_VAE, "ltx2": LTX2_VAE}[kind]
        found = autoencoders.find(spec)
        assert isinstance(found, known)
        assert spec.kind == kind
        window = found.window()
        assert window.frames == spec.temporal_stride * window.latent_frames
        assert {graph.source for graph in found.graphs("float32")} == {"vae"}


def test_a_kind_without_graphs_is_not_in_the_registry() -> None:
    assert autoencoders.find(DCAE_VAE) is None


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("AutoencoderDC", DCAE_VAE),
        ("AutoencoderDCV", DCAE_VAE),
    ],
)
def test_a_kind_without_graphs_is_recognised(name: str, spec: VAESpec, tmp_path: Path) -> None:
    assert autoencoders.read_spec(written(tmp_path, {"_class_name": name})) == spec


def test_an_unknown_class_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    folder = written(tmp_path, {"_class_name": "AutoencoderKL"})
    with pytest.raises(CheckpointFormatError, match="'AutoencoderKL'") as caught:
        autoencoders.read_spec(folder)
    for name in ("AutoencoderKLWan", "AutoencoderKLLTX2Video", "AutoencoderDC"):
        assert name in str(caught.value)


def test_the_kind_stands_in_the_specification_that_is_written() -> None:
    for spec in (WAN_VAE, LTX2_VAE, DCAE_VAE):
        model = msgspec.structs.replace(SMALL, vae=spec)
        raw = json.loads(msgspec.json.encode(model))
        assert raw["vae"]["kind"] == spec.kind
        assert ("base_dim" in raw["vae"]) == (spec.kind == "wan")
        assert msgspec.json.decode(msgspec.json.encode(model), type=ModelSpec) == model


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timestep_conditioning", True),
        ("decoder_inject_noise", [False, True, False, False]),
        ("decoder_inject_noise", True),
        ("decoder_spatial_padding_mode", "replicate"),
        ("patch_size_t", 2),
        ("spatio_temporal_scaling", [True, True, False, True]),
        ("decoder_spatio_temporal_scaling", False),
        ("down_block_types", ["LTXVideoDownBlock3D"] * 4),
        ("scaling_factor", 0.5),
        ("spatial_compression_ratio", 16),
        ("temporal_compression_ratio", 4),
    ],
)
def test_what_ltx2_is_not_is_refused_by_its_key(key: str, value: object, tmp_path: Path) -> None:
    config = LTX2(LTX2_VAE).config() | {key: value}
    with pytest.raises(CheckpointFormatError, match=key):
        autoencoders.read_spec(written(tmp_path, config))


def test_one_switch_stands_for_all_stages(tmp_path: Path) -> None:
    switches = ("spatio_temporal_scaling", "decoder_spatio_temporal_scaling", "upsample_residual")
    config = LTX2(LTX2_VAE).config() | dict.fromkeys(switches, True)
    config |= {"decoder_inject_noise": False, "spatial_compression_ratio": None}
    assert autoencoders.read_spec(written(tmp_path, config)) == LTX2_VAE
