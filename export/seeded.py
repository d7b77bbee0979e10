"""A small checkpoint with random weights, in the layout of diffusers: for tests and the demo.

Whoever reads the layout reads it: this package, and diffusers and transformers themselves.
Weights depend on the seed and on the tensor's name only, and are scaled so that every layer
keeps the size of its input: outputs are neither flat nor infinite.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from sana_rt.export import autoencoders, tensor_shapes
from sana_rt.export.autoencoders import Autoencoder
from sana_rt.export.configs import EXTRAS_NAME, Extras
from sana_rt.export.tensor_shapes import Shapes
from sana_rt.files import PARTIAL_SUFFIX, publish, write_bytes
from sana_rt.model_spec import (
    GEMMA2_2B,
    WAN_VAE,
    ModelSpec,
    SamplingSpec,
    TextSpec,
    TransformerSpec,
)

#: Seconds on two cores from checkpoint to video, with every part of the real model in it.
SMALL: Final = ModelSpec(
    name="sana-video-small",
    transformer=TransformerSpec(
        in_channels=16,
        out_channels=16,
        patch_size=(1, 2, 2),
        num_layers=4,
        num_heads=4,
        head_dim=28,
        num_cross_heads=4,
        cross_head_dim=28,
        caption_channels=64,
        ffn_dim=336,
    ),
    vae=msgspec.structs.replace(WAN_VAE, base_dim=8, num_res_blocks=1),
    text=msgspec.structs.replace(
        GEMMA2_2B,
        vocab_size=768,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16.0,
        max_tokens=64,
        instruction="Describe what moves in the video.\nUser Prompt: ",
    ),
    sampling=SamplingSpec(num_inference_steps=8, height=64, width=64, num_frames=17, fps=8),
)

_SHARD_BYTES: Final = 1 << 30
_NORM_SPREAD: Final = 0.1

#: What the tokenizer is trained on.
_TEXT: Final = """\
a red circle moving to the right
a blue square moving to the left, slowly
a green triangle rising from the bottom of a black picture
two yellow stars turning around each other
a white ball bouncing up and down on a grey floor
the large purple ring shrinks while the small orange one grows
Describe what moves in the video.
User Prompt: a quiet scene, low motion. motion score: 30.
User Prompt: a lively scene, high motion. motion score: 10.
"""
_SPECIAL: Final = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def write_checkpoint(path: Path, *, spec: ModelSpec = SMALL, seed: int = 0) -> Path:
    """Write a diffusers folder with seeded weights for ``spec`` to ``path``; returns ``path``.

    Weights are float32, in shards of at most 1 GiB which are made one after the other, so a
    checkpoint of any size needs little memory. For an autoencoder that has no graphs there is
    no ``vae`` folder.
    """
    parts = {
        "transformer": tensor_shapes.transformer(spec),
        "text_encoder": tensor_shapes.text_encoder(spec.text),
    }
    configs = {
        "transformer": _transformer_config(spec.transformer),
        "text_encoder": _gemma2(spec.text),
    }
    autoencoder = autoencoders.find(spec.vae)
    if autoencoder is not None:
        parts["vae"] = autoencoder.tensor_shapes()
        configs["vae"] = autoencoder.config()
    for part, tensors in parts.items():
        _write_json(path / part / "config.json", configs[part])
        _write_weights(path / part, tensors, _STEMS[part], seed)
    _write_json(path / "scheduler" / "scheduler_config.json", _scheduler_config(spec.sampling))
    write_tokenizer(path / "tokenizer", spec.text)
    extras = Extras(
        name=spec.name,
        sampling=spec.sampling,
        streaming=spec.streaming,
        max_tokens=spec.text.max_tokens,
        instruction=spec.text.instruction,
    )
    _write_json(path / EXTRAS_NAME, msgspec.to_builtins(extras))
    _write_json(path / "model_index.json", _model_index(spec, autoencoder))
    return path


#: The file names that ``from_pretrained`` looks for.
_STEMS: Final = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The float32 weight called ``name``: about 1 for a norm and for a standard deviation, else
    of variance 1 / fan-in.
    """
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = random.standard_normal(shape, np.float32)
    if "norm" in name or name == "latents_std":
        # Gemma-2 stores the weights of its norms minus 1.
        base = 0.0 if "layernorm" in name or name == "norm.weight" else 1.0
        values = base + _NORM_SPREAD * values
    elif len(shape) > 1:
        values /= math.sqrt(shape[-1] if len(shape) == 2 else math.prod(shape[1:]))
    else:
        values *= _NORM_SPREAD
    return torch.from_numpy(values)


def _write_weights(folder: Path, tensors: Shapes, stem: str, seed: int) -> None:
    shards = list(_shards(tensors))
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {}, "weight_map": weight_map}
        _write_json(folder / f"{stem}.safetensors.index.json", index)
    for name, keys in zip(names, shards, strict=True):
        values = {key: seeded_tensor(key, tensors[key], seed) for key in keys}
        partial = folder / f"{name}{PARTIAL_SUFFIX}"
        save_file(values, partial, metadata={"format": "pt"})
        publish(partial, folder / name)


def _shards(tensors: Shapes) -> Iterator[list[str]]:
    keys: list[str] = []
    size = 0
    for key, shape in tensors.items():
        count = 4 * math.prod(shape)
        if keys and size + count > _SHARD_BYTES:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += count
    yield keys


def _transformer_config(spec: TransformerSpec) -> dict[str, Any]:
    name = "SanaVideoCausalTransformer3DModel" if spec.causal else "SanaVideoTransformer3DModel"
    return {
        "_class_name": name,
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "num_attention_heads": spec.num_heads,
        "attention_head_dim": spec.head_dim,
        "num_layers": spec.num_layers,
        "num_cross_attention_heads": spec.num_cross_heads,
        "cross_attention_head_dim": spec.cross_head_dim,
        "cross_attention_dim": spec.num_cross_heads * spec.cross_head_dim,
        "caption_channels": spec.caption_channels,
        "mlp_ratio": spec.ffn_dim / spec.width,
        "attention_bias": False,
        "patch_size": spec.patch_size,
        "norm_elementwise_affine": False,
        "norm_eps": spec.norm_eps,
        "guidance_embeds": False,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": spec.rope_max_positions,
    }


def _gemma2(spec: TextSpec) -> dict[str, Any]:
    return {
        "architectures": ["Gemma2Model"],
        "model_type": "gemma2",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "query_pre_attn_scalar": int(spec.query_pre_attn_scalar),
        "attn_logit_softcapping": spec.attn_logit_softcap,
        "sliding_window": spec.sliding_window,
        "rope_theta": spec.rope_theta,
        "rms_norm_eps": spec.rms_norm_eps,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": 1,
        "pad_token_id": spec.pad_token_id,
        "dtype": "float32",
    }


def _scheduler_config(spec: SamplingSpec) -> dict[str, Any]:
    if spec.solver == "flow_euler":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": spec.flow_shift}
    return {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": spec.flow_shift,
    }


def _model_index(spec: ModelSpec, autoencoder: Autoencoder | None) -> dict[str, Any]:
    index = {
        "_class_name": "LongSanaVideoPipeline" if spec.transformer.causal else "SanaVideoPipeline",
        "scheduler": ["diffusers", _scheduler_config(spec.sampling)["_class_name"]],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizer"],
        "transformer": ["diffusers", _transformer_config(spec.transformer)["_class_name"]],
    }
    if autoencoder is None:
        return index
    return {**index, "vae": ["diffusers", autoencoder.class_name()]}


def write_tokenizer(folder: Path, spec: TextSpec) -> None:
    """Write a byte-pair tokenizer like Gemma's of ``spec.vocab_size`` tokens to ``folder``.

    As in Gemma's there is byte fallback, BOS in front, and a word carries the space before it.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))  # noqa: S106
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size - 256, special_tokens=list(_SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(_words(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", spec.bos_token_id)]
    )
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    extra = [f"<0x{byte:02X}>" for byte in range(256)]
    extra += [f"<unused{i}>" for i in range(spec.vocab_size - 256 - len(vocabulary))]
    vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(extra)}
    _write_json(folder / "tokenizer.json", content)
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True} | named,
    )


def _words() -> Iterator[str]:
    """The training text as the words of the pre-tokenizer: each has the space before it."""
    for line in _TEXT.splitlines():
        first, *rest = line.split(" ")
        yield first
        yield from (f" {word}" for word in rest)


def _write_json(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_bytes(path, text.encode() + b"\n")
