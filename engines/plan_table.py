"""The compiled layer table: what the kernels of a plan read, write and compute in.

TensorRT prints it while it builds, in its verbose log after the line ``Layers:``, one line a
kernel. It describes the final plan for the target card, so it can be read without the card.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sana_rt import documents
from sana_rt.documents import DocumentError
from sana_rt.errors import PlanTableError
from sana_rt.tensors import num_bytes

#: The names of data types in the log, and ours.
DTYPES: Final = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "FP4E2M1": "float4_e2m1",
    "Int64": "int64",
    "Int32": "int32",
    "UInt8": "uint8",
    "Bool": "bool",
}

_START: Final = "Layers:"
_LINE = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+)")
_KEY = re.compile(r", (?P<key>[A-Za-z]\w*): ")
_DIM: Final = r"-?\d{1,18}"
_DIMS: Final = rf"\[(?:{_DIM}(?:,{_DIM})*)?\]"
_STREAM = re.compile(r"\d{1,9}")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>[^{},]+), (?:Location: \w+, )?"
    rf"Dimensions: (?P<dims>{_DIMS}), (?:Strides: {_DIMS}, )?(?:StrideOrder: {_DIMS}, )?"
    r"Datatype: (?P<dtype>\w+), Format: [^{}]*\}"
)
_NODE = re.compile(r"\[ONNX Layer: (.*)\]")
_NODES_SEPARATOR: Final = "\x1f"
_TOTAL: Final = r"^\[\w+\] Total {what} Memory: (\d{{1,18}}) bytes$"


@dataclass(frozen=True)
class Tensor:
    """An operand of a kernel; a dimension of -1 is decided at run time."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_fixed(self) -> bool:
        """Whether every dimension is known."""
        return -1 not in self.shape

    @property
    def elements(self) -> int:
        """Number of elements of a tensor with fixed dimensions."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of a tensor with fixed dimensions."""
        return num_bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class Kernel:
    """One line of the table; ``kind`` is TensorRT's word (gemm, kgen, correlation, wait, ...)."""

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tactic: str
    stream: int
    nodes: tuple[str, ...]  # names of the ONNX nodes that it computes

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """Everything that it reads."""
        return self.inputs + self.constants

    @property
    def is_fixed(self) -> bool:
        """Whether the dimensions of all its tensors are known."""
        return all(tensor.is_fixed for tensor in self.operands + self.outputs)


@dataclass(frozen=True)
class PlanTable:
    """The kernels of a plan in the order of the table, and the memory that it asks for."""

    kernels: tuple[Kernel, ...]
    activation_bytes: int
    weight_bytes: int


def read(path: Path) -> PlanTable:
    """The table in the build log at ``path``."""
    try:
        return parse(documents.read_bytes(path).decode())
    except (DocumentError, UnicodeDecodeError) as error:
        raise PlanTableError(
            f"{path} is not the log of a build: {error}.", remedy="build the plan again."
        ) from error


def parse(log: str) -> PlanTable:
    """The table in a build log; a line that does not parse raises :class:`PlanTableError`."""
    return PlanTable(
        tuple(parse_line(line) for line in _table_lines(log)),
        _total(log, "Activation"),
        _total(log, "Weights"),
    )


def parse_line(line: str) -> Kernel:
    """One line of the table."""
    head = _LINE.match(line)
    if not head:
        raise _unparsed(line, "a line that starts with 'Name: ..., LayerType: ...'")
    fields = dict(_fields(line, head.end()))
    try:
        return Kernel(
            name=head["name"],
            kind=head["kind"],
            inputs=_tensors(line, fields["Inputs"]),
            constants=_tensors(line, fields.get("Constants", "[]")),
            outputs=_tensors(line, fields["Outputs"]),
            tactic=fields.get("TacticName", ""),
            stream=_stream(line, fields["StreamId"]),
            nodes=_nodes(line, fields.get("Metadata", "")),
        )
    except KeyError as error:
        raise _unparsed(line, f"the field {error}") from error


def _stream(line: str, text: str) -> int:
    if not _STREAM.fullmatch(text):
        raise _unparsed(line, f"a number of a stream instead of {text[:20]!r}")
    return int(text)


def _table_lines(log: str) -> Iterator[str]:
    starts = [match.end() for match in re.finditer(rf"^\[\w+\] {_START}\n", log, re.MULTILINE)]
    if len(starts) != 1:
        raise PlanTableError(
            f"The build log has {len(starts)} compiled layer tables.",
            expected="one, after a line 'Layers:' (of a build with detailed profiling verbosity).",
            remedy="build the plan again.",
        )
    for line in log[starts[0] :].splitlines():
        if not line or line.startswith("["):
            return
        yield line


def _fields(line: str, start: int) -> Iterator[tuple[str, str]]:
    """Keys and values after position ``start``; the last key, Metadata, takes the whole rest."""
    while start < len(line):
        key = _KEY.match(line, start)
        if not key:
            raise _unparsed(line, f"', key: value' at {line[start : start + 40]!r}")
        end = len(line) if key["key"] == "Metadata" else _value_end(line, key.end())
        yield key["key"], line[key.end() : end]
        start = end


def _value_end(line: str, start: int) -> int:
    """Where the value that starts at ``start`` ends: a bracketed list, or text up to a key."""
    if line.startswith("[", start):
        depth = 0
        for match in re.finditer(r"[\[\]]", line[start:]):
            depth += 1 if match[0] == "[" else -1
            if depth == 0:
                return start + match.end()
        raise _unparsed(line, "a closing bracket")
    following = _KEY.search(line, start)
    return following.start() if following else len(line)


def _tensors(line: str, text: str) -> tuple[Tensor, ...]:
    """The tensors of ``[ { Name: a, ... }, { Name: b, ... }]``."""
    rest = _TENSOR.sub("", text)
    if rest.replace(",", "").replace(" ", "") != "[]":
        raise _unparsed(line, f"a list of tensors; not understood: {rest!r}")
    return tuple(_tensor(line, match) for match in _TENSOR.finditer(text))


def _tensor(line: str, match: re.Match[str]) -> Tensor:
    if match["dtype"] not in DTYPES:
        raise _unparsed(line, f"one of the data types {', '.join(DTYPES)}")
    dims = match["dims"].strip("[]")
    return Tensor(
        match["name"],
        DTYPES[match["dtype"]],
        tuple(int(dim) for dim in dims.split(",")) if dims else (),
    )


def _nodes(line: str, text: str) -> tuple[str, ...]:
    if not text:
        return ()
    matches = [_NODE.fullmatch(part) for part in text.split(_NODES_SEPARATOR)]
    names = tuple(match[1] for match in matches if match)
    if len(names) < len(matches):
        raise _unparsed(line, "metadata of the form '[ONNX Layer: name]'")
    return names


def _total(log: str, what: str) -> int:
    sizes = re.findall(_TOTAL.format(what=what), log, re.MULTILINE)
    if not sizes:
        raise PlanTableError(
            f"The build log does not say 'Total {what} Memory: ... bytes'.",
            expected="the complete log of a build that succeeded.",
            remedy="build the plan again.",
        )
    return int(sizes[-1])


def _unparsed(line: str, expected: str) -> PlanTableError:
    shown = line if len(line) <= 400 else f"{line[:400]}... ({len(line):,} characters)"
    return PlanTableError(
        f"A line of the compiled layer table does not parse: {shown}",
        expected=f"{expected}.",
        remedy="build with a TensorRT version that this release knows; "
        "to add one, extend engines/plan_table.py.",
    )
