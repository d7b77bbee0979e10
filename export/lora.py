"""LoRA files: changes of low rank, merged into a transformer's weights as these are read.

To the weight of a layer a file adds ``scale · alpha / rank · up @ down``. Diffusers, PEFT and
kohya's scripts name and scale the same thing in different ways; all of them are read here, for
layers under their names in diffusers or in the original code.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import torch

from sana_rt.errors import CheckpointFormatError, CheckpointKeysError, UsageError, some
from sana_rt.export import config_tables, key_map, tensor_shapes, weights
from sana_rt.export.checkpoint import Checkpoint
from sana_rt.export.config_keys import shown
from sana_rt.export.tensor_shapes import Shapes
from sana_rt.export.weights import LazyTensor, Weights
from sana_rt.files import sha256
from sana_rt.manifest import Lora

#: What a layer's name may begin with; the first are joined by dots, the others by underscores.
_PREFIXES: Final = ("base_model.model.", "diffusion_model.", "transformer.")
_UNDERSCORED: Final = ("lora_unet_", "lora_transformer_")
_KEY: Final = re.compile(
    r"(?P<layer>.+)\.(?:(?P<factor>lora_A|lora_B|lora[._]down|lora[._]up)(?:\.\w+)?\.weight|alpha)"
)
_DOWN: Final = ("lora_A", "lora_down", "lora.down")
#: Parts of the names of tensors that say that it is another method, and which.
_OTHER_METHODS: Final = {
    "lora_magnitude_vector": "DoRA",
    "dora_scale": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "lora_mid": "LoCon with a Tucker core",
}
_METADATA_KEY: Final = "lora_adapter_metadata"  # diffusers'
_MAX_METADATA_CHARS: Final = 1 << 20
_PEFT_NAMES: Final = ("adapter_model.safetensors", "adapter_config.json")
_DIFFUSERS_NAME: Final = "pytorch_lora_weights.safetensors"
_RETRAINED: Final = "train or convert it for this model."


class Chosen(Protocol):
    """A LoRA to merge: a file, or the folder that PEFT or diffusers wrote it to, and a scale."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def scale(self) -> float:
        """How much of it."""


class _Settings(msgspec.Struct, frozen=True):
    """What PEFT says beside weights of what they add."""

    lora_alpha: float
    alpha_pattern: dict[str, float] | None
    use_rslora: bool

    def factor(self, layer: str, rank: int) -> float:
        """What ``up @ down`` of a layer is multiplied by; the first pattern of it counts."""
        patterns = (
            value for key, value in (self.alpha_pattern or {}).items() if _is_of(key, layer)
        )
        alpha = next(patterns, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _is_of(pattern: str, layer: str) -> bool:
    """Whether a pattern is the end of a layer's name or, behind a ``^``, all of it."""
    whole = pattern.removeprefix("^")
    return layer == whole or (whole == pattern and layer.endswith(f".{pattern}"))


@dataclass
class _Layer:
    """The tensors of one layer, by their names in the file."""

    down: str | None = None
    up: str | None = None
    alpha: str | None = None


def merge(checkpoint: Checkpoint, chosen: Sequence[Chosen]) -> Checkpoint:
    """``checkpoint`` with LoRAs merged into its transformer as each tensor is read.

    Raises:
        UsageError: a file is given twice.
        CheckpointKeysError: a tensor of a file belongs to no layer, or does not fit it.
        CheckpointFormatError: a file is damaged, or of another method than LoRA.
    """
    paths = [_weights_path(each.path) for each in chosen]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("A LoRA is given twice.", expected="each file once, with its scale.")
    shapes = tensor_shapes.transformer(checkpoint.spec)
    records = {
        path: Lora(_name(path), _hash(path), each.scale)
        for path, each in zip(paths, chosen, strict=True)
    }
    changes: dict[str, list[LazyTensor]] = {}
    # by hash, so that the sum does not depend on the order on a command line
    for path, record in sorted(records.items(), key=lambda item: item[1].sha256):
        for name, change in _changes(path, record.scale, shapes).items():
            changes.setdefault(name, []).append(change)
    changed = {name: _sum(checkpoint.transformer[name], each) for name, each in changes.items()}
    merged = Weights({**checkpoint.transformer, **changed}, checkpoint.transformer.files)
    return replace(
        checkpoint, transformer=merged, loras=tuple(records.values()), changed=frozenset(changed)
    )


def _weights_path(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (_PEFT_NAMES[0], _DIFFUSERS_NAME):
        if (path / name).is_file():
            return path / name
    raise CheckpointFormatError(
        f"{path} holds no LoRA.", expected=f"a file {_PEFT_NAMES[0]} or {_DIFFUSERS_NAME} in it."
    )


def _name(path: Path) -> str:
    """What the file is called; one that has the library's name is called after its folder."""
    if path.name in (_PEFT_NAMES[0], _DIFFUSERS_NAME):
        return path.parent.resolve().name
    return path.name


def _hash(path: Path) -> str:
    """The file's SHA-256; with PEFT's settings beside it, that of a text with both hashes."""
    beside = _beside(path)
    if beside is None:
        return sha256(path)
    lines = sorted(f"{sha256(each)}  {each.name}\n" for each in (path, beside))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _beside(path: Path) -> Path | None:
    """The file in which PEFT keeps the settings of its weights; None for other weights."""
    beside = path.with_name(_PEFT_NAMES[1])
    return beside if path.name == _PEFT_NAMES[0] and beside.is_file() else None


def _sum(base: LazyTensor, changes: Sequence[LazyTensor]) -> LazyTensor:
    def read() -> torch.Tensor:
        total = base.read().float()
        for change in changes:
            total = total + change.read().reshape(total.shape)
        return total

    return LazyTensor(base.shape, read)


def _changes(path: Path, scale: float, shapes: Shapes) -> dict[str, LazyTensor]:
    """What the file adds to which tensor of the transformer, under diffusers' names."""
    file = weights.open_safetensors(path)
    _check_method(path, file)
    layers = _layers(path, file, _spellings(shapes))
    settings = _settings(path)
    if settings is not None and any(each.alpha for each in layers.values()):
        raise CheckpointFormatError(
            f"{path} has alphas both among its tensors and in its settings.",
            expected="one of both.",
        )
    changes: dict[str, LazyTensor] = {}
    for name, layer in layers.items():
        product = _product(path, file, name, layer)
        factor = scale * _factor(file, name, layer, settings)
        if not math.isfinite(factor):
            raise CheckpointFormatError(
                f"{path} is added to {name} {factor} times.", expected="a finite scale and alpha."
            )
        whole = LazyTensor(product.shape, partial(_times, product.read, factor))
        for tensor, change in key_map.to_diffusers(Weights({f"{name}.weight": whole})).items():
            if tensor in changes:
                raise CheckpointKeysError(f"{path} changes {tensor} twice.")
            changes[tensor] = change
    _check_shapes(path, changes, shapes)
    return changes


def _times(read: Callable[[], torch.Tensor], factor: float) -> torch.Tensor:
    return read() * factor


def _check_method(path: Path, names: Iterator[str] | Weights) -> None:
    for name in names:
        for part, method in _OTHER_METHODS.items():
            if part in name:
                raise _another_method(path, method, f"the tensor {shown(name)}")


def _another_method(path: Path, method: str, found: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{path} is no plain LoRA but {method}: it has {found}.",
        expected="changes that are a product of two factors.",
        remedy="merge it into the checkpoint with the program that trained it, and export that.",
    )


def _spellings(shapes: Shapes) -> dict[str, str]:
    """Every layer by each of its names: diffusers' and the original, with dots or underscores."""
    tensors = [name for name, shape in shapes.items() if len(shape) >= 2]
    layers = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    names = dict.fromkeys([*layers, *map(key_map.to_original, layers)])
    return {spelt: name for name in names for spelt in (name, name.replace(".", "_"))}


def _layers(path: Path, file: Weights, spellings: Mapping[str, str]) -> dict[str, _Layer]:
    """The file's tensors by layer; each belongs to one, and each layer has both factors."""
    layers: dict[str, _Layer] = {}
    unknown = []
    for key in file:
        found = _KEY.fullmatch(key)
        name = None if found is None else spellings.get(_bare(found["layer"]))
        if found is None or name is None:
            unknown.append(shown(key))
            continue
        layer, factor = layers.setdefault(name, _Layer()), found["factor"]
        part = "alpha" if factor is None else "down" if factor in _DOWN else "up"
        if getattr(layer, part) is not None:
            raise CheckpointKeysError(
                f"{path} has two tensors for one factor: {shown(getattr(layer, part))} and "
                f"{shown(key)}.",
                expected="one adapter a file.",
            )
        setattr(layer, part, key)
    incomplete = [name for name, each in layers.items() if each.down is None or each.up is None]
    faults = {
        "belong to no layer of this transformer": sorted(unknown),
        "are half of a pair": [f"those of {name}" for name in sorted(incomplete)],
    }
    _raise_faults(path, faults)
    if not layers:
        raise CheckpointKeysError(f"{path} has no tensors.", expected="a LoRA.")
    return layers


def _bare(layer: str) -> str:
    for prefix in (*_PREFIXES, *_UNDERSCORED):
        layer = layer.removeprefix(prefix)
    return layer


def _raise_faults(path: Path, faults: Mapping[str, Sequence[str]]) -> None:
    lines = [f"{len(names)} {what}: {some(names)}." for what, names in faults.items() if names]
    if lines:
        raise CheckpointKeysError(
            f"{path} does not fit the transformer. Of its tensors\n" + "\n".join(lines),
            expected="changes of layers of the transformer, and of nothing else.",
            remedy=_RETRAINED,
        )


def _product(path: Path, file: Weights, name: str, layer: _Layer) -> LazyTensor:
    """``up @ down``: [out, in], or [out, in, ...] where ``down`` is a convolution's kernel."""
    assert layer.down is not None
    assert layer.up is not None
    down, up = file[layer.down].shape, file[layer.up].shape
    fits = len(down) >= 2 and len(up) >= 2 and up[1] == down[0] and set(up[2:]) <= {1}
    if not fits or down[0] == 0:
        misfit = f"{name}: up is {up}, down is {down}"
        _raise_faults(path, {"are no product of two factors": [misfit]})
    return LazyTensor(
        (up[0], *down[1:]), partial(_multiply, file, layer.up, layer.down, (up[0], *down[1:]))
    )


def _multiply(file: Weights, up: str, down: str, shape: tuple[int, ...]) -> torch.Tensor:
    factors = [file.load(name).float().flatten(1) for name in (up, down)]
    return (factors[0] @ factors[1]).reshape(shape)


def _factor(file: Weights, name: str, layer: _Layer, settings: _Settings | None) -> float:
    """Alpha over rank; without an alpha it is the rank, as for diffusers."""
    assert layer.down is not None
    rank = file[layer.down].shape[0]
    if settings is not None:
        return settings.factor(name, rank)
    if layer.alpha is None:
        return 1.0
    alpha = file.load(layer.alpha)
    if alpha.numel() != 1:
        raise CheckpointKeysError(
            f"{layer.alpha} has the shape {tuple(alpha.shape)}.", expected="one number."
        )
    return float(alpha) / rank


def _check_shapes(path: Path, changes: Mapping[str, LazyTensor], shapes: Shapes) -> None:
    """Every change has its tensor's shape; a 1×1 convolution is as good as a matrix.

    One whose rows are not those of all parts of a fused tensor was not divided among them.
    """
    misfits = [
        f"{name} is changed by {change.shape}, is {shapes.get(name, 'several')}"
        for name, change in changes.items()
        if name not in shapes or _matrix(change.shape) != _matrix(shapes[name])
    ]
    _raise_faults(path, {"have other shapes": misfits})


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if set(shape[2:]) == {1} else shape


def _settings(path: Path) -> _Settings | None:
    """What PEFT wrote beside the weights, or diffusers into their file; None if neither did."""
    beside = _beside(path)
    if beside is not None:
        return _checked(beside, weights.read_json(beside))
    text = weights.metadata(path).get(_METADATA_KEY)
    if text is None:
        if path.name == _PEFT_NAMES[0]:
            raise CheckpointFormatError(
                f"{path} does not say how much it adds.", expected=f"{_PEFT_NAMES[1]} beside it."
            )
        return None
    if len(text) > _MAX_METADATA_CHARS:
        raise CheckpointFormatError(
            f"{path} has metadata of {len(text):,} characters.",
            expected=f"at most {_MAX_METADATA_CHARS:,}.",
        )
    found = weights.parse_json(text.encode(), f"the metadata of {path}")
    return _checked(path, {key.removeprefix("transformer."): found[key] for key in found})


def _checked(path: Path, found: Mapping[str, Any]) -> _Settings:
    values = config_tables.PEFT_LORA.checked(str(path), found)
    return _Settings(**{name: values[name] for name in _Settings.__struct_fields__})
