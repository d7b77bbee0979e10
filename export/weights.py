"""The named tensors of a checkpoint, each read from its file only when asked for."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from sana_rt import documents
from sana_rt.errors import (
    CheckpointFormatError,
    CheckpointKeysError,
    UnsafeCheckpointError,
    some,
)

_ZIP_MAGIC: Final = b"PK\x03\x04"
_PICKLE_MAGIC: Final = b"\x80"
_SAFETENSORS_DTYPES: Final = ("F64", "F32", "F16", "BF16")
_TRANSFERRED: Final = "copy or download the file again; compare its size with the original."


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file: its shape, and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Rows ``start`` to ``stop`` of the first dimension."""
        return LazyTensor((stop - start, *self.shape[1:]), lambda: self.read()[start:stop])


class Weights(Mapping[str, LazyTensor]):
    """Tensors by name; nothing but names and shapes is held in memory."""

    def __init__(self, tensors: Mapping[str, LazyTensor], files: tuple[Path, ...] = ()) -> None:
        self._tensors = dict(tensors)
        self.files = files

    def __getitem__(self, name: str) -> LazyTensor:  # noqa: D105
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:  # noqa: D105
        return iter(self._tensors)

    def __len__(self) -> int:  # noqa: D105
        return len(self._tensors)

    def load(self, name: str) -> torch.Tensor:
        """Read one tensor; a NaN or an infinity in it is a :class:`CheckpointFormatError`."""
        tensor = self._tensors[name].read()
        if not torch.isfinite(tensor).all():
            raise CheckpointFormatError(
                f"The tensor {name!r} holds NaN or infinity.",
                expected="finite weights.",
                remedy=_TRANSFERRED,
            )
        return tensor

    def under(self, prefix: str) -> Weights:
        """The tensors whose names begin with ``prefix``, without it."""
        inside = {
            name.removeprefix(prefix): tensor
            for name, tensor in self._tensors.items()
            if name.startswith(prefix)
        }
        return Weights(inside, self.files)

    def check(self, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
        """Raise :class:`CheckpointKeysError` unless names and shapes are exactly ``shapes``."""
        missing = sorted(shapes.keys() - self._tensors.keys())
        unexpected = sorted(self._tensors.keys() - shapes.keys())
        misshaped = [
            f"{name} is {self[name].shape}, expected {shape}"
            for name, shape in shapes.items()
            if name in self._tensors and self[name].shape != shape
        ]
        groups = {"missing": missing, "unexpected": unexpected, "mis-shaped": misshaped}
        faults = [
            f"{len(names)} {label}: {some(names)}." for label, names in groups.items() if names
        ]
        if faults:
            raise CheckpointKeysError(
                f"The {what} does not fit its configuration.\n" + "\n".join(faults),
                expected=f"{len(shapes)} tensors with the names and shapes of the configuration.",
                remedy="check that weights and configuration (or --preset) belong together.",
            )


def open_folder(folder: Path) -> Weights:
    """All tensors of a folder's safetensors files; with an index file, those that it names."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        return _open_sharded(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointFormatError(
            f"{folder} has {len(files)} safetensors files and no index: "
            f"{[file.name for file in files]}.",
            expected="one *.safetensors file, or several with a *.safetensors.index.json.",
            remedy="fetch the folder again; pickled weights (*.bin) are not read from folders.",
        )
    return open_safetensors(files[0])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else is a :class:`CheckpointFormatError`.

    Python's reader takes the ``Infinity`` that diffusers writes. It has no limit of its own on
    size, and none that is an answer on depth; a key that is there twice it reads over.
    """
    try:
        data = documents.read_bytes(path)
    except ValueError as error:
        raise CheckpointFormatError(
            f"{path} cannot be read as JSON: {error}.", remedy=_TRANSFERRED
        ) from error
    return parse_json(data, str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object, which ``where`` says where it is from; see :func:`read_json`."""
    try:
        content = json.loads(data, object_pairs_hook=_object)
        json.dumps(content, ensure_ascii=False).encode()  # an escape can be half a character
    except RecursionError as error:
        raise CheckpointFormatError(f"{where} is nested too deeply.") from error
    except ValueError as error:
        raise CheckpointFormatError(
            f"{where} cannot be read as JSON: {error}.", remedy=_TRANSFERRED
        ) from error
    if not isinstance(content, dict):
        raise CheckpointFormatError(
            f"{where} holds a JSON {type(content).__name__}.", expected="an object."
        )
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("it has a key twice")
    return content


def _open_sharded(index: Path) -> Weights:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointFormatError(f"{index} has no weight_map.", remedy=_TRANSFERRED)
    shards = {
        name: open_safetensors(_shard(index, name)) for name in sorted(set(weight_map.values()))
    }
    absent = [key for key, name in weight_map.items() if key not in shards[name]]
    if absent:
        raise CheckpointFormatError(
            f"{index} names tensors that its shards do not hold: {some(sorted(absent))}.",
            remedy="fetch the index and all shards of one revision again.",
        )
    tensors = {key: shards[name][key] for key, name in weight_map.items()}
    return Weights(tensors, (index, *(index.parent / name for name in shards)))


def _shard(index: Path, name: object) -> Path:
    if not isinstance(name, str) or PurePosixPath(name).name != name:
        raise CheckpointFormatError(
            f"{index} names the shard {name!r}.", expected="a file name in the same folder."
        )
    path = index.parent / name
    if not path.is_file():
        raise CheckpointFormatError(
            f"{index} names the shard {name}, which is missing.", remedy="fetch the folder again."
        )
    return path


def open_safetensors(path: Path) -> Weights:
    """The tensors of one safetensors file, memory-mapped."""
    try:
        with safe_open(path, framework="pt") as opened:
            file: Any = opened
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no __iter__
            kinds = {name: each.get_dtype() for name, each in slices.items()}
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointFormatError(
            f"{path} is not a complete safetensors file: {error}.", remedy=_TRANSFERRED
        ) from error
    for name, kind in kinds.items():
        if kind not in _SAFETENSORS_DTYPES:
            raise CheckpointFormatError(
                f"{path}: tensor {name!r} has dtype {kind}.",
                expected=f"one of {', '.join(_SAFETENSORS_DTYPES)}: weights before quantization.",
            )
    tensors = {name: LazyTensor(shape, _reader(path, name)) for name, shape in shapes.items()}
    return Weights(tensors, (path,))


def metadata(path: Path) -> dict[str, str]:
    """What the header says beside the tensors of a file that :func:`open_safetensors` opened."""
    with safe_open(path, framework="pt") as file:
        found: dict[str, str] = file.metadata() or {}
    return found


def _reader(path: Path, name: str) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        # Opened anew: pages of a file that stays mapped would count as memory of this process.
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    return read


def open_torch(path: Path) -> dict[str, Any]:
    """The dictionary in a ``torch.save`` file, memory-mapped; nothing in it is ever executed.

    Only tensors and plain containers are rebuilt (PyTorch's weights-only unpickler). Anything
    else raises :class:`UnsafeCheckpointError`.
    """
    magic = _first_bytes(path, len(_ZIP_MAGIC))
    if magic.startswith(_PICKLE_MAGIC):
        raise UnsafeCheckpointError(
            f"{path} is a bare pickle; it was not opened, because a pickle can run code.",
            expected="the zip format of torch.save, or safetensors.",
            remedy="convert it to safetensors if you trust it.",
        )
    if magic != _ZIP_MAGIC:
        raise CheckpointFormatError(
            f"{path} begins with {magic!r}.",
            expected="a diffusers folder, a safetensors file or a torch.save file.",
        )
    content = _load_zip(path)
    if not isinstance(content, dict):
        raise CheckpointFormatError(
            f"{path} holds a {type(content).__name__}.", expected="a dictionary of tensors."
        )
    return content


def _load_zip(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(
            f"{path} asks for more than plain tensors; nothing in it was executed. "
            f"{str(error).splitlines()[-1]}",
            expected="a dictionary of tensors.",
            remedy="do not trust this file; get the safetensors version of the checkpoint.",
        ) from error
    except _DAMAGE as error:
        raise CheckpointFormatError(
            f"{path} is damaged: {(str(error) or type(error).__name__).splitlines()[0]}",
            remedy=_TRANSFERRED,
        ) from error


#: What PyTorch's unpickler raises for pickles that nobody wrote.
_DAMAGE: Final = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def from_tensors(tensors: Mapping[str, Any], path: Path) -> Weights:
    """Weights over tensors that are in memory or memory-mapped already."""
    lazy = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise CheckpointFormatError(
                f"{path}: the name {name!r} of an entry is of type {type(name).__name__}.",
                expected="names of type str.",
            )
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointFormatError(
                f"{path}: entry {name!r} is of type {type(tensor).__name__}.", expected="a tensor."
            )
        lazy[name] = LazyTensor(tuple(tensor.shape), _constant(tensor))
    return Weights(lazy, (path,))


def _constant(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors: a 64-bit header length, then ``{``."""
    head = _first_bytes(path, 9)
    return len(head) == 9 and head[8:] == b"{"


def _first_bytes(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise CheckpointFormatError(
            f"{path} cannot be read: {error.strerror}.", remedy="check the path."
        ) from error
