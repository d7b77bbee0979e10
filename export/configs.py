"""The specification of a model, read from the configuration files of a diffusers folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from sana_rt import documents
from sana_rt.errors import CheckpointFormatError
from sana_rt.export import config_keys, config_tables
from sana_rt.export.config_tables import MAX_LAYERS
from sana_rt.export.key_map import DIFFUSERS_MARK
from sana_rt.export.weights import Weights, read_json
from sana_rt.model_spec import (
    PRESETS,
    Count,
    Frozen,
    ModelSpec,
    SamplingSpec,
    StreamingSpec,
    TextSpec,
    TransformerSpec,
    VAESpec,
)

#: Beside ``model_index.json``; holds what the diffusers layout has no place for.
EXTRAS_NAME: Final = "sana_rt.json"

_PARTS: Final = {
    "transformer": "config.json",
    "vae": "config.json",
    "scheduler": "scheduler_config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer.json",
}
_WITH_CLASS: Final = ("transformer", "vae", "scheduler")


class Extras(Frozen, frozen=True):
    """``sana_rt.json``: the name and the defaults of a model, where they are not a preset's."""

    name: str
    sampling: SamplingSpec
    streaming: StreamingSpec | None
    max_tokens: Count
    instruction: str


def read_spec(path: Path) -> ModelSpec:
    """A model's whole specification, in the words of a manifest's ``model``."""
    spec = documents.read(path, documents.json, ModelSpec, partial(_invalid, path))
    if spec.transformer.num_layers > MAX_LAYERS or spec.text.num_layers > MAX_LAYERS:
        raise _invalid(path, f"it has more than {MAX_LAYERS} layers")
    return spec


def _invalid(path: Path, reason: str) -> CheckpointFormatError:
    return CheckpointFormatError(f"{path} is invalid: {reason}.")


def check_index(folder: Path) -> None:
    """Refuse a folder whose ``model_index.json`` does not name what its parts are.

    A part that it names may be missing, but for the scheduler: another would take its place.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        return
    index = config_keys.choose(path, read_json(path), *config_tables.PIPELINES)
    for part, file in _PARTS.items():
        name = index[part][1]
        if (folder / part / file).is_file():
            _check_named(path, part, name)
            if part in _WITH_CLASS:
                _check_class(path, folder / part / file, name)
        elif part == "scheduler" and name is not None:
            raise CheckpointFormatError(
                f"{path} names the scheduler {name}, and there is no {folder / part / file}.",
                expected="both, or neither.",
                remedy="fetch the folder again.",
            )


def _check_named(index: Path, part: str, name: str | None) -> None:
    if name is None:
        raise CheckpointFormatError(
            f"{index} names no {part}, and there is the folder {part}.",
            expected="both, or neither.",
            remedy=f"name the class, or remove the folder {part}.",
        )


def _check_class(index: Path, config: Path, name: str) -> None:
    actual = read_json(config).get("_class_name")
    if actual != name:
        raise CheckpointFormatError(
            f"{config} is the configuration of {config_keys.shown(actual)}.",
            expected=f"{name}, which {index} names.",
        )


def transformer_spec(folder: Path) -> TransformerSpec:
    """The transformer's sizes, from ``config.json``."""
    path = folder / "config.json"
    tables = (config_tables.TRANSFORMER, config_tables.CAUSAL_TRANSFORMER)
    config = config_keys.choose(path, read_json(path), *tables)
    causal = config["_class_name"] == config_tables.CAUSAL_TRANSFORMER.identity[1]
    return TransformerSpec(
        in_channels=config["in_channels"],
        out_channels=config["in_channels"],
        patch_size=config["patch_size"],
        num_layers=config["num_layers"],
        num_heads=config["num_attention_heads"],
        head_dim=config["attention_head_dim"],
        num_cross_heads=config["num_cross_attention_heads"],
        cross_head_dim=config["cross_attention_head_dim"],
        caption_channels=config["caption_channels"],
        ffn_dim=config_tables.ffn_dim(config),
        rope_max_positions=config["rope_max_seq_len"],
        norm_eps=config["norm_eps"],
        attention_eps=1e-8 if causal else 1e-15,
        causal=causal,
    )


def text_spec(folder: Path, preset: TextSpec) -> TextSpec:
    """The text encoder's sizes, from ``config.json``; how prompts are made is ``preset``'s."""
    path = folder / "config.json"
    config = config_keys.choose(path, read_json(path), config_tables.GEMMA2)
    rope = config.get("rope_parameters", {})
    return msgspec.structs.replace(
        preset,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        query_pre_attn_scalar=config["query_pre_attn_scalar"],
        attn_logit_softcap=config["attn_logit_softcapping"],
        sliding_window=config["sliding_window"],
        rope_theta=rope.get("rope_theta") or config["rope_theta"],
        rms_norm_eps=config["rms_norm_eps"],
        bos_token_id=config["bos_token_id"],
        pad_token_id=config["pad_token_id"],
    )


def with_defaults(spec: ModelSpec, folder: Path) -> ModelSpec:
    """``spec`` with the scheduler's solver and shift, and with what ``sana_rt.json`` says."""
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        spec = msgspec.structs.replace(spec, sampling=_sampling(scheduler, spec.sampling))
    path = folder / EXTRAS_NAME
    if not path.is_file():
        return spec
    extras = documents.read(path, documents.json, Extras, partial(_invalid, path))
    if scheduler.is_file():
        _agree(path, extras.sampling, scheduler, spec.sampling)
    text = msgspec.structs.replace(
        spec.text, max_tokens=extras.max_tokens, instruction=extras.instruction
    )
    return msgspec.structs.replace(
        spec, name=extras.name, text=text, sampling=extras.sampling, streaming=extras.streaming
    )


def _agree(path: Path, extras: SamplingSpec, scheduler: Path, sampling: SamplingSpec) -> None:
    """Refuse extras that say another solver or shift than the scheduler's own file."""
    said, wanted = ((each.solver, each.flow_shift) for each in (extras, sampling))
    if said != wanted and "renoise" not in (extras.solver, sampling.solver):
        raise CheckpointFormatError(
            f"{path} says {said[0]} with flow_shift {said[1]:g}.",
            expected=f"{wanted[0]} with flow_shift {wanted[1]:g}, as {scheduler} says.",
            remedy="change both files, or remove one of them.",
        )


def with_instruction(spec: ModelSpec, instruction: str) -> ModelSpec:
    """``spec`` with ``instruction`` before every prompt."""
    text = msgspec.structs.replace(spec.text, instruction=instruction)
    return msgspec.structs.replace(spec, text=text)


def _sampling(path: Path, preset: SamplingSpec) -> SamplingSpec:
    if preset.solver == "renoise":  # a distilled model has its own steps, whatever the file says
        return preset
    tables = (config_tables.DPM_SOLVER, config_tables.FLOW_EULER)
    config = config_keys.choose(path, read_json(path), *tables)
    if config["_class_name"] == config_tables.FLOW_EULER.identity[1]:
        return msgspec.structs.replace(preset, solver="flow_euler", flow_shift=config["shift"])
    return msgspec.structs.replace(preset, solver="dpmpp_2m", flow_shift=config["flow_shift"])


def base_for(transformer: TransformerSpec, vae: VAESpec | None) -> ModelSpec:
    """The released model with this transformer, or the nearest one under the name ``custom``.

    It supplies what the checkpoint does not say: sampling defaults, and absent parts.
    """
    near = [
        preset
        for preset in PRESETS.values()
        if preset.transformer.causal == transformer.causal
        and preset.transformer.in_channels == transformer.in_channels
        and (vae is None or vae.kind == preset.vae.kind)
    ]
    if not near:
        raise CheckpointFormatError(
            f"A transformer with {transformer.in_channels} latent channels fits no known "
            f"autoencoder{f' and not {vae.kind}' if vae else ''}.",
            expected=f"one of {', '.join(PRESETS)}.",
            remedy="say which it is with --preset.",
        )
    if near[0].transformer == transformer:
        return near[0]
    return msgspec.structs.replace(near[0], name="custom")


def infer(weights: Weights, causal: bool | None = None) -> TransformerSpec:
    """The preset's transformer whose tensors have the shapes of ``weights``.

    ``causal`` says whether it is block-causal, if that is known: tensors do not tell. Raises
    :class:`CheckpointFormatError` where not exactly one preset fits.
    """
    found = _sizes(weights)
    fits = {
        name: preset.transformer
        for name, preset in PRESETS.items()
        if causal in (None, preset.transformer.causal)
        and all(getattr(preset.transformer, key) == value for key, value in found.items())
    }
    if len(fits) != 1:
        raise CheckpointFormatError(
            f"The tensors' shapes ({found}) fit {' and '.join(fits) or 'no preset'}.",
            expected="exactly one preset.",
            remedy=f"say which it is with --preset: {', '.join(fits or PRESETS)}.",
        )
    (transformer,) = fits.values()
    return transformer


def _sizes(weights: Weights) -> dict[str, object]:
    width, channels, *patch = weights[DIFFUSERS_MARK].shape
    blocks = {name.split(".")[1] for name in weights if name.startswith("transformer_blocks.")}
    sizes: dict[str, object] = {
        "width": width,
        "in_channels": channels,
        "patch_size": tuple(patch),
        "num_layers": len(blocks),
    }
    inverted = weights.get("transformer_blocks.0.ff.conv_inverted.weight")
    if inverted is not None:
        sizes["ffn_dim"] = inverted.shape[0] // 2
    return sizes
