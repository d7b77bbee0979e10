"""A checkpoint on disk, whatever its layout: its specification, and its tensors read lazily.

Three layouts are told apart by content: a diffusers folder, an original ``.pth`` (top key
``state_dict``), which may be of SANA-Video or of LongSANA, and LongSANA's training ``.pt`` or
``.pth`` (top key ``generator``, prefix ``model.``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import msgspec

from sana_rt import tokenizer_file
from sana_rt.errors import CheckpointFormatError, UsageError
from sana_rt.export import (
    autoencoders,
    config_keys,
    configs,
    instructions,
    tensor_shapes,
    tokenizer_settings,
)
from sana_rt.export.autoencoders import Autoencoder
from sana_rt.export.graph_definition import PartName
from sana_rt.export.key_map import DIFFUSERS_MARK, ORIGINAL_MARK, to_diffusers
from sana_rt.export.weights import (
    Weights,
    from_tensors,
    is_safetensors,
    open_folder,
    open_safetensors,
    open_torch,
    read_json,
)
from sana_rt.files import sha256
from sana_rt.manifest import Lora, Source
from sana_rt.model_spec import (
    PRESETS,
    ModelSpec,
    TextSpec,
    TransformerSpec,
    contradictions,
    differences,
)

Layout = Literal["diffusers", "original", "longsana"]

TOKENIZER_NAME: Final = "tokenizer.json"

#: Written by ``sana-rt fetch``: where a folder came from.
FETCHED_NAME: Final = "sana_rt_fetched.json"


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a model; a part that is absent is None and ``notes`` say why.

    Tensors have diffusers' names (transformers' for the text encoder) in every layout. ``loras``
    are merged into those of the transformer that are ``changed``.
    """

    name: str
    layout: Layout
    spec: ModelSpec
    transformer: Weights
    vae: Weights | None = None
    text_encoder: Weights | None = None
    tokenizer: Path | None = None
    notes: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()
    changed: frozenset[str] = frozenset()

    def part(self, name: PartName) -> Weights:
        """The tensors of a part that the checkpoint has."""
        weights: Weights | None = getattr(self, name)
        if weights is None:
            raise CheckpointFormatError(f"The checkpoint {self.name} has no {name}.")
        return weights

    @cached_property
    def source(self) -> Source:
        """Where the weights came from; every weight file is read once to hash it.

        ``sha256`` is that of the text with one line ``<SHA-256 of the file>  <part>/<name>`` for
        each weight file, sorted; for ``loras`` see :meth:`Source.with_loras`.
        """
        names: tuple[PartName, ...] = ("transformer", "vae", "text_encoder")
        lines = sorted(
            f"{sha256(path)}  {name}/{path.name}\n"
            for name in names
            if getattr(self, name) is not None
            for path in self.part(name).files
        )
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        source = Source(checkpoint=self.name, layout=self.layout, sha256=digest)
        return source.with_loras(self.loras)


@dataclass(frozen=True)
class Parts:
    """Parts named by hand, in place of or in addition to those of the checkpoint.

    ``vae`` is a folder with ``config.json`` or an original ``Wan2.1_VAE.pth``;
    ``text_encoder`` a folder with a Gemma-2 model; ``tokenizer`` a folder with, or the file
    itself, ``tokenizer.json`` (default: beside the text encoder).
    """

    vae: Path | None = None
    text_encoder: Path | None = None
    tokenizer: Path | None = None


def open_checkpoint(
    path: Path,
    *,
    preset: str | ModelSpec | None = None,
    parts: Parts | None = None,
    instruction: str | None = None,
) -> Checkpoint:
    """Open a diffusers folder, an original ``.pth`` or a LongSANA ``.pt``.

    ``preset`` (a name, the path of a ``.json`` file, or a specification) says what a file
    without configuration is; it is needed only where the tensors' shapes fit no preset.
    ``instruction`` goes before prompts: see :func:`sana_rt.export.instructions.instruction`; by
    default it is the checkpoint's own or the one that SANA-Video was trained with. Raises
    :class:`CheckpointFormatError`, :class:`UnsafeCheckpointError`, :class:`TokenizerError` for a
    tokenizer of another text encoder or, listing every fault, :class:`CheckpointKeysError`.
    """
    known = _preset(preset)
    layout, transformer = _open_transformer(path)
    parts = _found(path, parts or Parts())
    spec = _spec(path, layout, transformer, parts, known)
    if instruction is not None:
        spec = configs.with_instruction(spec, instructions.instruction(instruction))
    for each in contradictions(spec):
        raise CheckpointFormatError(
            f"{path} is of no model: {each.field} is {each.value}.",
            expected=f"{each.expected}.",
            remedy="correct its configuration files, or --preset.",
        )
    transformer.check(tensor_shapes.transformer(spec), "transformer")
    vae, vae_notes = _open_vae(spec, parts.vae)
    if parts.text_encoder is not None and parts.tokenizer is not None:
        _check_tokenizer(parts.tokenizer, spec.text, parts.text_encoder / "config.json")
    text_encoder, text_notes = _open_text_encoder(spec, parts.text_encoder)
    return Checkpoint(
        name=_source_name(path),
        layout=layout,
        spec=spec,
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=parts.tokenizer,
        notes=vae_notes + text_notes + _tokenizer_notes(parts.tokenizer),
    )


def _preset(preset: str | ModelSpec | None) -> ModelSpec | None:
    if not isinstance(preset, str):
        return preset
    if preset.endswith(".json"):
        return configs.read_spec(Path(preset))
    if preset not in PRESETS:
        raise UsageError(
            f"There is no preset {preset!r}.",
            expected=f"one of {', '.join(PRESETS)}, or the path of a .json file.",
        )
    return configs.with_instruction(PRESETS[preset], instructions.ORIGINAL)


def _source_name(path: Path) -> str:
    fetched = path / FETCHED_NAME
    if not fetched.is_file():
        return path.resolve().name
    record = read_json(fetched)
    return f"{record.get('repo_id')}@{record.get('revision')}"


def _open_transformer(path: Path) -> tuple[Layout, Weights]:
    if path.is_dir():
        configs.check_index(path)
        return "diffusers", _known_names(open_folder(_transformer_folder(path)), path)
    if is_safetensors(path):
        return "original", _known_names(open_safetensors(path), path)
    content = open_torch(path)
    if "generator" in content:
        weights = from_tensors(_dictionary(content, "generator", path), path)
        return "longsana", _known_names(weights.under("model."), path)
    tensors = _dictionary(content, "state_dict", path) if "state_dict" in content else content
    return "original", _known_names(from_tensors(tensors, path), path)


def _dictionary(content: Mapping[str, object], key: str, path: Path) -> Mapping[str, object]:
    inner = content[key]
    if not isinstance(inner, Mapping):
        raise CheckpointFormatError(
            f"{path}: {key!r} is a {type(inner).__name__}.", expected="a dictionary of tensors."
        )
    return inner


def _known_names(weights: Weights, path: Path) -> Weights:
    if DIFFUSERS_MARK in weights:
        return weights
    if ORIGINAL_MARK in weights:
        return to_diffusers(weights)
    raise CheckpointFormatError(
        f"{path} holds no SANA-Video transformer; its {len(weights)} tensors begin with "
        f"{', '.join(sorted(weights)[:3]) or 'nothing'}.",
        expected=f"a tensor {DIFFUSERS_MARK} (diffusers) or {ORIGINAL_MARK} (original).",
    )


def _transformer_folder(path: Path) -> Path:
    folder = path / "transformer"
    if not (folder / "config.json").is_file():
        raise CheckpointFormatError(
            f"{path} has no transformer/config.json.",
            expected="a folder in the diffusers layout: transformer/, vae/, text_encoder/, ...",
        )
    return folder


def _found(path: Path, parts: Parts) -> Parts:
    """``parts``, completed with what lies in the checkpoint's folder."""
    vae = parts.vae or _existing(path / "vae")
    text_encoder = parts.text_encoder or _existing(path / "text_encoder")
    near = [parts.tokenizer, parts.text_encoder, path / "tokenizer"]
    files = [place for place in near if place is not None and place.is_file()]
    files += [
        place / TOKENIZER_NAME
        for place in near
        if place is not None and (place / TOKENIZER_NAME).is_file()
    ]
    return Parts(vae, text_encoder, files[0] if files else None)


def _existing(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _spec(
    path: Path, layout: Layout, weights: Weights, parts: Parts, preset: ModelSpec | None
) -> ModelSpec:
    transformer = _transformer_spec(path, layout, weights, preset)
    vae = (
        autoencoders.read_spec(parts.vae) if parts.vae is not None and parts.vae.is_dir() else None
    )
    base = preset or configs.with_instruction(
        configs.base_for(transformer, vae), instructions.ORIGINAL
    )
    spec = msgspec.structs.replace(base, transformer=transformer, vae=vae or base.vae)
    if parts.text_encoder is not None:
        text = configs.text_spec(parts.text_encoder, spec.text)
        _check_caption(parts.text_encoder / "config.json", text, transformer)
        spec = msgspec.structs.replace(spec, text=text)
    return configs.with_defaults(spec, path)


def _check_caption(path: Path, text: TextSpec, transformer: TransformerSpec) -> None:
    if text.hidden_size != transformer.caption_channels:
        raise CheckpointFormatError(
            f"{path} says that the text encoder's output has {text.hidden_size} channels.",
            expected=f"{transformer.caption_channels}, the transformer's caption_channels.",
            remedy="give the text encoder of the same checkpoint.",
        )


def _transformer_spec(
    path: Path, layout: Layout, weights: Weights, preset: ModelSpec | None
) -> TransformerSpec:
    if layout != "diffusers":
        if preset:
            return preset.transformer
        # SANA-Video and LongSANA have the same tensors; only training files of the latter tell
        return configs.infer(weights, causal=True if layout == "longsana" else None)
    spec = configs.transformer_spec(_transformer_folder(path))
    if preset is None:
        return spec
    causal = preset.transformer
    spec = msgspec.structs.replace(spec, causal=causal.causal, attention_eps=causal.attention_eps)
    found = [f"{name} is {one}, not {other}" for name, one, other in differences(spec, causal)]
    if found:
        raise UsageError(
            f"{path} is not {preset.name}: in its transformer's configuration {'; '.join(found)}.",
            expected=f"the configuration of {preset.name}.",
            remedy="give the checkpoint of that model.",
        )
    return spec


def _open_vae(spec: ModelSpec, path: Path | None) -> tuple[Weights | None, tuple[str, ...]]:
    if path is None:
        return None, (
            "The checkpoint has no autoencoder, so the bundle gets no VAE graphs: it makes "
            "latents, not frames. Name one with --vae.",
        )
    autoencoder = autoencoders.find(spec.vae)
    if autoencoder is None:
        return None, (
            f"The {spec.vae.kind} autoencoder has no graphs yet, so the bundle makes latents, "
            "not frames.",
        )
    weights = open_folder(path) if path.is_dir() else _open_original_vae(autoencoder, path)
    weights.check(autoencoder.tensor_shapes(), "autoencoder")
    return weights, ()


def _open_original_vae(autoencoder: Autoencoder, path: Path) -> Weights:
    original = from_tensors(open_torch(path), path)
    renamed = {autoencoder.original_to_diffusers(name): original[name] for name in original}
    return Weights(renamed, original.files)


def _open_text_encoder(
    spec: ModelSpec, folder: Path | None
) -> tuple[Weights | None, tuple[str, ...]]:
    if folder is None:
        return None, (
            "The checkpoint has no text encoder: the bundle takes prompt embeddings, not "
            "prompts. Name one with --text-encoder.",
        )
    weights = open_folder(folder)
    if "model.norm.weight" in weights:  # a language model around the encoder
        weights = weights.under("model.")
    weights.check(tensor_shapes.text_encoder(spec.text), "text encoder")
    return weights, ()


def _check_tokenizer(path: Path, spec: TextSpec, config: Path) -> None:
    """Raise :class:`TokenizerError` unless it is a tokenizer of the text encoder of ``config``."""
    tokenizer = tokenizer_file.read(path, spec)
    tokenizer_settings.check(path, tokenizer)
    ids = _end_tokens(config)
    tokenizer_file.check_special(tokenizer, ids, f"the end, as {config} says", path)


def _end_tokens(config: Path) -> list[int]:
    """The tokens that end a text: a number, several, or none."""
    given = read_json(config).get("eos_token_id")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    try:
        return msgspec.convert(listed, list[int])
    except msgspec.ValidationError as error:
        raise CheckpointFormatError(
            f"{config}: eos_token_id is {config_keys.shown(given)}.", expected="numbers of tokens."
        ) from error


def _tokenizer_notes(path: Path | None) -> tuple[str, ...]:
    if path is not None:
        return ()
    return (f"The checkpoint has no {TOKENIZER_NAME}: the bundle takes prompt embeddings only.",)
