"""Checkpoints of every layout give the same tensors; damaged and hostile ones give errors."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from sana_rt.errors import (
    CheckpointFormatError,
    CheckpointKeysError,
    StorageError,
    TokenizerError,
    UnsafeCheckpointError,
    UsageError,
)
from sana_rt.export import tensor_shapes
from sana_rt.export.checkpoint import FETCHED_NAME, Checkpoint, Parts, open_checkpoint
from sana_rt.export.configs import EXTRAS_NAME, infer, with_instruction
from sana_rt.export.instructions import DIFFUSERS, ORIGINAL
from sana_rt.export.seeded import SMALL, write_checkpoint
from sana_rt.export.weights import LazyTensor, Weights
from sana_rt.model_spec import DCAE_VAE, PRESETS, StreamingSpec

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tensors(small_checkpoint: Path) -> Tensors:
    """The transformer's tensors under their diffusers names, read by safetensors itself."""
    return load_file(small_checkpoint / "transformer/diffusion_pytorch_model.safetensors")


@pytest.fixture
def folder(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return shutil.copytree(small_checkpoint, tmp_path / "checkpoint")


def original(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors as NVlabs/Sana names and fuses them, listed by hand from its modules."""
    plain = {
        "x_embedder.proj.weight": "patch_embedding.weight",
        "x_embedder.proj.bias": "patch_embedding.bias",
        "t_embedder.mlp.0.weight": "time_embed.emb.timestep_embedder.linear_1.weight",
        "t_embedder.mlp.0.bias": "time_embed.emb.timestep_embedder.linear_1.bias",
        "t_embedder.mlp.2.weight": "time_embed.emb.timestep_embedder.linear_2.weight",
        "t_embedder.mlp.2.bias": "time_embed.emb.timestep_embedder.linear_2.bias",
        "t_block.1.weight": "time_embed.linear.weight",
        "t_block.1.bias": "time_embed.linear.bias",
        "y_embedder.y_proj.fc1.weight": "caption_projection.linear_1.weight",
        "y_embedder.y_proj.fc1.bias": "caption_projection.linear_1.bias",
        "y_embedder.y_proj.fc2.weight": "caption_projection.linear_2.weight",
        "y_embedder.y_proj.fc2.bias": "caption_projection.linear_2.bias",
        "attention_y_norm.weight": "caption_norm.weight",
        "final_layer.linear.weight": "proj_out.weight",
        "final_layer.linear.bias": "proj_out.bias",
        "final_layer.scale_shift_table": "scale_shift_table",
    }
    block = {
        "scale_shift_table": "scale_shift_table",
        "attn.q_norm.weight": "attn1.norm_q.weight",
        "attn.k_norm.weight": "attn1.norm_k.weight",
        "attn.proj.weight": "attn1.to_out.0.weight",
        "attn.proj.bias": "attn1.to_out.0.bias",
        "cross_attn.q_linear.weight": "attn2.to_q.weight",
        "cross_attn.q_linear.bias": "attn2.to_q.bias",
        "cross_attn.q_norm.weight": "attn2.norm_q.weight",
        "cross_attn.k_norm.weight": "attn2.norm_k.weight",
        "cross_attn.proj.weight": "attn2.to_out.0.weight",
        "cross_attn.proj.bias": "attn2.to_out.0.bias",
        "mlp.inverted_conv.conv.weight": "ff.conv_inverted.weight",
        "mlp.inverted_conv.conv.bias": "ff.conv_inverted.bias",
        "mlp.depth_conv.conv.weight": "ff.conv_depth.weight",
        "mlp.depth_conv.conv.bias": "ff.conv_depth.bias",
        "mlp.point_conv.conv.weight": "ff.conv_point.weight",
        "mlp.t_conv.weight": "ff.conv_temp.weight",
    }
    fused = {
        "attn.qkv.weight": ("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight"),
        "cross_attn.kv_linear.weight": ("attn2.to_k.weight", "attn2.to_v.weight"),
        "cross_attn.kv_linear.bias": ("attn2.to_k.bias", "attn2.to_v.bias"),
    }
    out = {old: tensors[new] for old, new in plain.items()}
    for index in range(SMALL.transformer.num_layers):
        new_prefix, old_prefix = f"transformer_blocks.{index}.", f"blocks.{index}."
        out |= {old_prefix + old: tensors[new_prefix + new] for old, new in block.items()}
        for old, parts in fused.items():
            out[old_prefix + old] = torch.cat([tensors[new_prefix + part] for part in parts])
    # what the original has beside the weights
    out |= {"y_embedder.y_embedding": torch.zeros(300, 8), "pos_embed": torch.zeros(1, 4, 8)}
    return out


def test_layouts_give_the_same_tensors(tensors: Tensors, tmp_path: Path) -> None:
    names = original(tensors)
    assert len(names) < len(tensors)  # fused
    files = {
        "original": {"state_dict": names, "epoch": 3},
        "longsana": {"generator": {f"model.{name}": each for name, each in names.items()}},
    }
    for layout, content in files.items():
        path = tmp_path / f"{layout}.bin"  # the name says nothing
        torch.save(content, path)
        checkpoint = open_checkpoint(path, preset=SMALL)
        assert checkpoint.layout == layout
        assert set(checkpoint.transformer) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.transformer.load(name), tensor), name


def test_a_folder_gives_its_specification_and_tensors(
    small_checkpoint: Path, tensors: Tensors
) -> None:
    checkpoint = open_checkpoint(small_checkpoint)
    assert checkpoint.spec == SMALL
    assert checkpoint.layout == "diffusers"
    assert checkpoint.notes == ()
    assert checkpoint.tokenizer == small_checkpoint / "tokenizer/tokenizer.json"
    assert {name: checkpoint.transformer[name].shape for name in tensors} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


def test_shards_are_one_checkpoint(folder: Path, tensors: Tensors) -> None:
    shard(folder / "transformer", tensors)
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.transformer.files) == 3
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.transformer.load(name), tensor)


def shard(part: Path, tensors: Tensors) -> dict[str, str]:
    """Cut a part's file into two shards; returns the index's weight map."""
    (part / "diffusion_pytorch_model.safetensors").unlink()
    names = list(tensors)
    weight_map = {}
    for index, keys in enumerate((names[::2], names[1::2])):
        file = f"model-{index}.safetensors"
        save_file({key: tensors[key] for key in keys}, part / file)
        weight_map |= dict.fromkeys(keys, file)
    write_index(part, weight_map)
    return weight_map


def write_index(part: Path, weight_map: Mapping[str, str]) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(text)


class Creates:
    """A pickle of it creates a file when it is loaded by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["top", "state_dict", "beside", "bare"])
def test_a_pickle_is_never_executed(place: str, tensors: Tensors, tmp_path: Path) -> None:
    created, path = tmp_path / "created", tmp_path / "model.pth"
    evil = Creates(created)
    if place == "bare":
        path.write_bytes(pickle.dumps({"state_dict": evil}))
    else:
        contents: dict[str, Any] = {
            "top": evil,
            "state_dict": {"state_dict": evil},
            "beside": {"state_dict": original(tensors), "config": evil},
        }
        torch.save(contents[place], path)
    with pytest.raises(UnsafeCheckpointError, match=r"executed|opened"):
        open_checkpoint(path, preset=SMALL)
    assert not created.exists()


def test_the_hostile_pickle_is_hostile(tmp_path: Path) -> None:
    """The test above can fail: a careless reader does run it."""
    pickle.loads(pickle.dumps(Creates(tmp_path / "created")))
    assert (tmp_path / "created").exists()


def test_all_faults_of_the_names_are_listed(folder: Path, tensors: Tensors) -> None:
    for name in ("proj_out.bias", "caption_norm.weight"):
        tensors.pop(name)
    tensors["surplus.weight"] = torch.zeros(2)
    tensors["transformer_blocks.0.attn1.to_q.weight"] = torch.zeros(3, 5)
    save_file(tensors, folder / "transformer/diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointKeysError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert "2 missing: caption_norm.weight, proj_out.bias." in message
    assert "1 unexpected: surplus.weight." in message
    assert "transformer_blocks.0.attn1.to_q.weight is (3, 5), expected (112, 112)" in message


def test_a_weight_that_is_not_finite_is_found_when_it_is_read(
    folder: Path, tensors: Tensors
) -> None:
    tensors["proj_out.bias"][3] = float("nan")
    save_file(tensors, folder / "transformer/diffusion_pytorch_model.safetensors")
    checkpoint = open_checkpoint(folder)  # reads names and shapes only
    with pytest.raises(CheckpointFormatError, match=r"proj_out\.bias.*NaN"):
        checkpoint.transformer.load("proj_out.bias")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def lose_a_shard(folder: Path) -> None:
    part = folder / "transformer"
    shard(part, load_file(part / "diffusion_pytorch_model.safetensors"))
    (part / "model-1.safetensors").unlink()


def name_an_absent_tensor(folder: Path) -> None:
    part = folder / "transformer"
    weight_map = shard(part, load_file(part / "diffusion_pytorch_model.safetensors"))
    write_index(part, weight_map | {"absent.weight": "model-0.safetensors"})


def leave_the_folder(folder: Path) -> None:
    part = folder / "transformer"
    weight_map = shard(part, load_file(part / "diffusion_pytorch_model.safetensors"))
    write_index(part, weight_map | {"proj_out.bias": "../vae/other.safetensors"})


def edit(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: each for key, each in content.items() if each is not None}))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated data": (
        lambda folder: truncate(folder / "transformer/diffusion_pytorch_model.safetensors"),
        "not a complete safetensors",
    ),
    "truncated header": (
        lambda folder: os.truncate(folder / "vae/diffusion_pytorch_model.safetensors", 20),
        "not a complete safetensors",
    ),
    "missing shard": (lose_a_shard, r"model-1\.safetensors, which is missing"),
    "absent tensor": (name_an_absent_tensor, r"do not hold: absent\.weight"),
    "shard outside": (leave_the_folder, r"names the shard '\.\./vae"),
    "no weights": (
        lambda folder: (folder / "text_encoder/model.safetensors").unlink(),
        "has 0 safetensors files",
    ),
    "no transformer": (lambda folder: shutil.rmtree(folder / "transformer"), "no transformer/"),
    "no JSON": (lambda folder: (folder / "vae/config.json").write_text("{"), "as JSON"),
    "JSON list": (lambda folder: (folder / "vae/config.json").write_text("[]"), "a JSON list"),
    "missing field": (
        lambda folder: edit(folder, "transformer/config.json", num_layers=None),
        "lacks the field 'num_layers'",
    ),
    "ill-typed field": (
        lambda folder: edit(folder, "transformer/config.json", patch_size="2"),
        "patch_size",
    ),
    "guidance embedding": (
        lambda folder: edit(folder, "transformer/config.json", guidance_embeds=True),
        "guidance_embeds to True",
    ),
    "other class": (
        lambda folder: edit(folder, "transformer/config.json", _class_name="FluxTransformer"),
        "'FluxTransformer'",
    ),
    "other encoder": (
        lambda folder: edit(folder, "text_encoder/config.json", model_type="t5"),
        "'t5'",
    ),
    "other scheduler": (
        lambda folder: edit(folder, "scheduler/scheduler_config.json", _class_name="DDIM"),
        "'DDIM'",
    ),
    "unknown extra": (
        lambda folder: edit(folder, EXTRAS_NAME, colour="red"),
        "unknown field `colour`",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_folder_is_refused(what: str, folder: Path) -> None:
    damage, message = DAMAGE[what]
    damage(folder)
    with pytest.raises(CheckpointFormatError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "begins with"),
        (b"PK\x03\x04 and then nothing", "damaged"),
        (b"", "begins with"),
    ],
)
def test_a_damaged_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointFormatError, match=message):
        open_checkpoint(path)


def test_a_file_without_the_transformer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"encoder.conv.weight": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointFormatError, match=r"no SANA-Video transformer.*encoder\.conv"):
        open_checkpoint(path)


def test_unknown_shapes_ask_for_a_preset(tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": original(tensors)}, path)
    with pytest.raises(CheckpointFormatError, match="--preset"):
        open_checkpoint(path)
    with pytest.raises(UsageError, match="no preset 'sana'"):
        open_checkpoint(path, preset="sana")


def test_a_file_says_what_a_bare_checkpoint_is(tensors: Tensors, tmp_path: Path) -> None:
    path, file = tmp_path / "model.pth", tmp_path / "model.json"
    torch.save({"state_dict": original(tensors)}, path)
    file.write_bytes(msgspec.json.encode(with_instruction(SMALL, "")))
    spec = open_checkpoint(path, preset=str(file)).spec
    assert spec.transformer == SMALL.transformer
    assert spec.text.instruction == "", "the file says that nothing is put before prompts"
    file.write_text('{"name": "small"}')
    with pytest.raises(CheckpointFormatError, match=r"model\.json is invalid.*transformer"):
        open_checkpoint(path, preset=str(file))
    with pytest.raises(StorageError, match=r"missing\.json"):
        open_checkpoint(path, preset=str(tmp_path / "missing.json"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_released_transformer_is_known_by_its_shapes(name: str) -> None:
    spec = PRESETS[name]
    weights = Weights(
        {
            key: LazyTensor(shape, lambda: pytest.fail("read a tensor"))
            for key, shape in tensor_shapes.transformer(spec).items()
        }
    )
    assert infer(weights, causal=spec.transformer.causal) == spec.transformer


def test_tensors_that_two_presets_have_ask_for_one() -> None:
    """SANA-Video and LongSANA of 480p differ in how they are sampled, not in their tensors."""
    shapes = tensor_shapes.transformer(PRESETS["longsana-2b-480p"])
    weights = Weights({key: LazyTensor(each, torch.empty) for key, each in shapes.items()})
    with pytest.raises(
        CheckpointFormatError, match="--preset: sana-video-2b-480p, longsana-2b-480p"
    ):
        infer(weights)
    assert infer(weights, causal=True).causal


def test_a_file_does_not_say_that_it_is_bidirectional(
    small_checkpoint: Path, tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    causal = msgspec.structs.replace(
        SMALL,
        transformer=msgspec.structs.replace(SMALL.transformer, causal=True),
        streaming=StreamingSpec(),
    )
    monkeypatch.setitem(PRESETS, "small", SMALL)
    monkeypatch.setitem(PRESETS, "small-causal", causal)
    path = tmp_path / "model.pth"
    torch.save({"state_dict": original(tensors)}, path)
    with pytest.raises(CheckpointFormatError, match="--preset: small, small-causal"):
        open_checkpoint(path)
    assert open_checkpoint(path, preset="small-causal").spec.transformer.causal
    torch.save({"generator": {f"model.{key}": each for key, each in tensors.items()}}, path)
    assert open_checkpoint(path).spec.transformer.causal


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 1024}, "has 768 tokens"),
        ({"vocab_size": 512}, "has 768 tokens"),
        ({"bos_token_id": 1}, r"empty text as the tokens \[2\]"),
        ({"pad_token_id": 77}, "a special token for padding"),
        ({"eos_token_id": 99}, "a special token for the end"),
        ({"eos_token_id": [1, 200]}, "at 200"),
        ({"eos_token_id": -1}, "None at -1"),
        ({"eos_token_id": 1 << 40}, "None at 1099511627776"),
    ],
)
def test_a_tokenizer_of_another_text_encoder_is_refused(
    change: dict[str, object], said: str, folder: Path
) -> None:
    edit(folder, "text_encoder/config.json", **change)
    with pytest.raises(TokenizerError, match=said):
        open_checkpoint(folder)


def test_an_end_that_is_no_token_is_refused(folder: Path) -> None:
    edit(folder, "text_encoder/config.json", eos_token_id=["<eos>"])
    with pytest.raises(CheckpointFormatError, match="eos_token_id is"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", ["{}", "[]", '{"model": {"type": "BPE"}}', "not JSON"])
def test_what_is_no_tokenizer_is_refused_before_anything_is_exported(
    content: str, folder: Path
) -> None:
    (folder / "tokenizer/tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match="cannot be read as a tokenizer"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {
                "truncation": {
                    "direction": "Left",
                    "max_length": 5,
                    "strategy": "LongestFirst",
                    "stride": 0,
                }
            },
            "at its beginning",
        ),
        ({"model": {"dropout": 0.5}}, "a dropout of 0.5"),
    ],
)
def test_a_tokenizer_of_other_tokens_than_transformers_is_refused(
    change: dict[str, Any], said: str, folder: Path
) -> None:
    path = folder / "tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    model = content["model"] | change.get("model", {})
    path.write_text(json.dumps(content | change | {"model": model}))
    with pytest.raises(TokenizerError, match=said):
        open_checkpoint(folder)


def test_an_autoencoder_without_graphs_is_left_out(tmp_path: Path) -> None:
    channels = DCAE_VAE.latent_channels
    wide = msgspec.structs.replace(SMALL.transformer, in_channels=channels, out_channels=channels)
    spec = msgspec.structs.replace(SMALL, transformer=wide, vae=DCAE_VAE)
    folder = write_checkpoint(tmp_path / "checkpoint", spec=spec)
    (folder / "vae").mkdir()
    (folder / "vae/config.json").write_text('{"_class_name": "AutoencoderDC"}')
    edit(folder, "model_index.json", vae=["diffusers", "AutoencoderDC"])
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec.vae == DCAE_VAE
    assert checkpoint.vae is None
    assert "dcae autoencoder has no graphs" in checkpoint.notes[0]


def test_parts_can_come_from_elsewhere(
    small_checkpoint: Path, tensors: Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": original(tensors)}, path)
    alone = open_checkpoint(path, preset=SMALL)
    assert (alone.vae, alone.text_encoder, alone.tokenizer) == (None, None, None)
    assert len(alone.notes) == 3
    parts = Parts(
        vae=small_checkpoint / "vae",
        text_encoder=small_checkpoint / "text_encoder",
        tokenizer=small_checkpoint / "tokenizer",
    )
    whole = open_checkpoint(path, preset=SMALL, parts=parts)
    assert whole.notes == ()
    assert whole.spec == SMALL
    assert whole.tokenizer == small_checkpoint / "tokenizer/tokenizer.json"


def without_extras(folder: Path) -> Checkpoint:
    (folder / EXTRAS_NAME).unlink()
    return open_checkpoint(folder)


def test_the_scheduler_says_solver_and_shift(folder: Path) -> None:
    edit(
        folder,
        "scheduler/scheduler_config.json",
        _class_name="FlowMatchEulerDiscreteScheduler",
        shift=5.0,
    )
    edit(folder, "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    sampling = without_extras(folder).spec.sampling
    assert (sampling.solver, sampling.flow_shift) == ("flow_euler", 5.0)


def test_a_checkpoint_without_extras_is_a_custom_one(folder: Path) -> None:
    spec = without_extras(folder).spec
    assert spec.name == "custom"
    assert spec.text.instruction == ORIGINAL
    assert spec.transformer == SMALL.transformer


def test_the_instruction_can_be_chosen(small_checkpoint: Path) -> None:
    spec = open_checkpoint(small_checkpoint, instruction="diffusers").spec
    assert spec.text.instruction == DIFFUSERS


def test_a_causal_class_makes_a_causal_model(folder: Path) -> None:
    causal = "SanaVideoCausalTransformer3DModel"
    edit(folder, "transformer/config.json", _class_name=causal)
    pipeline = "LongSanaVideoPipeline"
    edit(folder, "model_index.json", _class_name=pipeline, transformer=["diffusers", causal])
    spec = without_extras(folder).spec
    assert spec.transformer.causal
    assert spec.transformer.attention_eps == 1e-8
    assert spec.sampling.solver == "renoise"
    assert spec.streaming is not None


def test_the_source_is_the_hash_of_all_weights(folder: Path, tensors: Tensors) -> None:
    before = open_checkpoint(folder).source
    assert (before.checkpoint, before.layout) == ("checkpoint", "diffusers")
    tensors["proj_out.bias"][0] += 1
    save_file(tensors, folder / "transformer/diffusion_pytorch_model.safetensors")
    assert open_checkpoint(folder).source.sha256 != before.sha256


def test_the_source_names_what_was_fetched(folder: Path) -> None:
    record = {"repo_id": "owner/model", "revision": "0" * 40}
    (folder / FETCHED_NAME).write_text(json.dumps(record))
    assert open_checkpoint(folder).source.checkpoint == f"owner/model@{'0' * 40}"
