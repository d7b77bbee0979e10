"""The seeded checkpoint is one that diffusers and transformers load themselves."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, SanaVideoPipeline, SanaVideoTransformer3DModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, Gemma2Model

from sana_rt.export import seeded, tensor_shapes
from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.export.seeded import SMALL, seeded_tensor, write_checkpoint

PARTS = {
    "transformer": (SanaVideoTransformer3DModel, "diffusion_pytorch_model.safetensors"),
    "vae": (AutoencoderKLWan, "diffusion_pytorch_model.safetensors"),
    "text_encoder": (Gemma2Model, "model.safetensors"),
}


@pytest.mark.parametrize("part", PARTS)
def test_the_reference_loads_every_tensor(part: str, small_checkpoint: Path) -> None:
    kind, file = PARTS[part]
    model, info = kind.from_pretrained(small_checkpoint / part, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    saved = load_file(small_checkpoint / part / file)
    loaded = model.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_the_reference_sees_the_same_configuration(small_checkpoint: Path) -> None:
    model = SanaVideoTransformer3DModel.from_pretrained(small_checkpoint / "transformer")
    assert model.config.mlp_ratio == 3.0
    assert model.config.num_layers == SMALL.transformer.num_layers
    text = Gemma2Model.from_pretrained(small_checkpoint / "text_encoder").config
    assert text.attn_logit_softcapping == 50.0
    assert text.layer_types == ["sliding_attention", "full_attention"]


@pytest.fixture(scope="module")
def pipeline(small_checkpoint: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own, about its future
        return SanaVideoPipeline.from_pretrained(small_checkpoint)


def test_the_reference_plays_it(pipeline: Any) -> None:
    """Frames that are neither flat nor clamped, from a prompt."""
    pipeline.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames = pipeline(
            "a red circle moving to the right",
            height=64,
            width=64,
            frames=9,
            num_inference_steps=2,
            max_sequence_length=SMALL.text.max_tokens,
            complex_human_instruction=[SMALL.text.instruction],
            use_resolution_binning=False,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).frames[0]
    assert frames.shape == (9, 64, 64, 3)
    assert np.isfinite(frames).all()
    assert frames.std() > 0.1
    assert ((frames > 0) & (frames < 1)).mean() > 0.5


def test_the_tokenizer_is_like_gemmas(small_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_checkpoint / "tokenizer")
    ids = tokenizer("a red circle, é").input_ids
    assert ids[0] == SMALL.text.bos_token_id == tokenizer.bos_token_id
    assert tokenizer.pad_token_id == SMALL.text.pad_token_id
    assert len(tokenizer) == SMALL.text.vocab_size
    assert tokenizer.unk_token_id not in ids  # what it has not seen falls back to bytes
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red circle, é"


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_seed_decides_every_byte(small_checkpoint: Path, tmp_path: Path) -> None:
    again = digests(write_checkpoint(tmp_path / "again"))
    other = digests(write_checkpoint(tmp_path / "other", seed=1))
    assert again == digests(small_checkpoint)
    differing = {name for name, digest in other.items() if digest != again[name]}
    assert differing == {f"{part}/{file}" for part, (_, file) in PARTS.items()}


def test_large_parts_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeded, "_SHARD_BYTES", 1 << 20)
    folder = write_checkpoint(tmp_path / "checkpoint")
    assert len(list((folder / "transformer").glob("*.safetensors"))) == 5
    model = SanaVideoTransformer3DModel.from_pretrained(folder / "transformer")
    name = "transformer_blocks.3.ff.conv_temp.weight"
    assert torch.equal(model.state_dict()[name], open_checkpoint(folder).transformer.load(name))


def test_layers_keep_the_size_of_their_input() -> None:
    for name, shape in tensor_shapes.transformer(SMALL).items():
        tensor = seeded_tensor(name, shape, 0)
        if len(shape) > 1 and "scale_shift" not in name:
            fan_in = tensor[0].numel()
            assert tensor.std().item() == pytest.approx(fan_in**-0.5, rel=0.2), name
