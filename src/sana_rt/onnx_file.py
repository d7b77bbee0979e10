"""What an ONNX file says of itself, read without its weights and without ONNX.

A graph's file is looked at before anything opens it, also where plans are played and nothing but
the base package is installed. So this reads the few fields that it needs of the protocol buffers
themselves; their numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from sana_rt.files import storage_errors
from sana_rt.tensors import Dim, TensorSpec

#: ``TensorProto.DataType`` by number.
_DTYPES: Final[Mapping[int, str]] = {
    1: "float32",
    2: "uint8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    16: "bfloat16",
    17: "float8_e4m3fn",
    23: "float4_e2m1",
}

#: The fields in which a tensor can lie, however deep, by the message that has them.
_WAYS_TO_TENSORS: Final[Mapping[str, Mapping[int, str]]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_VARINT_BYTES: Final = 10  # of 64 bits, seven a byte
_MOST_OF_KEYS: Final = 0xFFFF_FFFF
_NOT_ONNX: Final = "it is no protocol buffer, or has fields that ONNX does not"

_Field = tuple[int, int | memoryview]


class DamagedOnnxError(ValueError):
    """What is wrong with the file; callers name it in their own error."""


class Outside(NamedTuple):
    """Where a tensor lies outside of the file: ``location`` is relative to the file's folder."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class OnnxFile:
    """The signature and the opset of a model, and what of it lies in other files."""

    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    outside: tuple[Outside, ...]


def read(path: Path) -> OnnxFile:
    """Read the file at ``path``; time grows with its size without the weights in it.

    Raises :class:`DamagedOnnxError`, and :class:`StorageError` where it cannot be read.
    """
    with storage_errors(path), path.open("rb") as file:
        if not file.seek(0, 2):
            raise DamagedOnnxError("it is empty")
        # Closed with the last view of it; errors may still hold some.
        return parse(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def parse(content: memoryview) -> OnnxFile:
    """Read the bytes of a file."""
    graphs = _messages(content, 7)
    if not graphs:
        raise DamagedOnnxError("it holds no graph")
    inputs, outputs = (
        tuple(_tensor_spec(each) for graph in graphs for each in _messages(graph, number))
        for number in (11, 12)
    )
    outside = tuple(each for tensor in _tensors(content) for each in _outside(tensor))
    return OnnxFile(_opset(content), inputs, outputs, outside)


def _tensors(model: memoryview) -> Iterator[memoryview]:
    """Every tensor, wherever in the model it is."""
    found = [("Model", model)]
    while found:
        kind, message = found.pop()
        if kind == "Tensor":
            yield message
            continue
        ways = _WAYS_TO_TENSORS[kind]
        for number, value in _fields(message):
            if number in ways and isinstance(value, memoryview):
                found.append((ways[number], value))


def _outside(tensor: memoryview) -> Iterator[Outside]:
    """Where the tensor lies, if it says so; a key that is there twice has its last value."""
    entries = {
        "".join(_texts(entry, 1)[-1:]): "".join(_texts(entry, 2)[-1:])
        for entry in _messages(tensor, 13)
    }
    if entries:
        offset, length = (_count(entries.get(name, "0")) for name in ("offset", "length"))
        yield Outside(entries.get("location", ""), offset, length)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise DamagedOnnxError("it holds a tensor at no offset or of no length")
    return int(text)


def _opset(model: memoryview) -> int:
    versions = [
        _numbers(each, 2)[-1:]
        for each in _messages(model, 8)
        if _texts(each, 1)[-1:] in ([], [""], ["ai.onnx"])
    ]
    return versions[0][0] if versions and versions[0] else 0


def _tensor_spec(value_info: memoryview) -> TensorSpec:
    name = "".join(_texts(value_info, 1)[-1:])
    tensors = [t for kind in _messages(value_info, 2) for t in _messages(kind, 1)]
    number = [each for tensor in tensors for each in _numbers(tensor, 1)][-1:]
    dims = [d for t in tensors for shape in _messages(t, 2) for d in _messages(shape, 1)]
    dtype = _DTYPES.get(number[0], f"type {number[0]}") if number else "no type"
    return TensorSpec(name, dtype, tuple(map(_dim, dims)))


def _dim(dimension: memoryview) -> Dim:
    """A number or a name; what is said last counts, and nothing at all is a name of nothing."""
    found: Dim = ""
    for number, value in _fields(dimension):
        if number == 1 and isinstance(value, int):
            found = value
        elif number == 2 and isinstance(value, memoryview):
            found = _text(value)
    return found


def _messages(message: memoryview, number: int) -> list[memoryview]:
    return [v for n, v in _fields(message) if n == number and isinstance(v, memoryview)]


def _texts(message: memoryview, number: int) -> list[str]:
    return [_text(each) for each in _messages(message, number)]


def _numbers(message: memoryview, number: int) -> list[int]:
    return [v for n, v in _fields(message) if n == number and isinstance(v, int)]


def _text(value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise DamagedOnnxError("it holds text that is not UTF-8") from error


def _fields(message: memoryview) -> Iterator[_Field]:
    """The fields of a message: numbers as numbers, what has a length as its bytes.

    Floats of a fixed width, of which what is read here has none, are passed over.
    """
    at = 0
    while at < len(message):
        key, at = _key(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == _LENGTH:
            length, at = _varint(message, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise DamagedOnnxError(_NOT_ONNX)
        if length > len(message) - at:
            raise DamagedOnnxError("it is cut off")
        if kind == _LENGTH:
            yield key >> 3, message[at : at + length]
        at += length


def _key(message: memoryview, at: int) -> tuple[int, int]:
    """A field's number and kind. Readers differ in what they make of over 32 bits, or of 0."""
    key, at = _varint(message, at)
    if key > _MOST_OF_KEYS or not key >> 3:
        raise DamagedOnnxError(_NOT_ONNX)
    return key, at


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise DamagedOnnxError("it is cut off")
