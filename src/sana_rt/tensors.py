"""Names of dtypes, and shapes whose dimensions may be named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from sana_rt.errors import BindingError, ManifestShapeError

Dim = int | str
Shape = tuple[Dim, ...]

#: Bits of one element, by dtype name. The names are ONNX's and numpy's where both have one.
DTYPE_BITS: Final[Mapping[str, int]] = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float4_e2m1": 4,
    "int64": 64,
    "int32": 32,
    "uint8": 8,
    "bool": 8,
}

MAX_RANK: Final = 8
_DIM_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of a graph: ``name``, ``dtype`` and ``shape`` with named dims.

    A dimension is a non-negative integer or a name such as ``"batch"``; the same name is
    the same number everywhere in one graph.
    """

    name: str
    dtype: str
    shape: Shape

    def check(self, where: str) -> None:
        """Raise :class:`ManifestShapeError` if the spec breaks a rule of the format."""
        if self.dtype not in DTYPE_BITS:
            raise ManifestShapeError(
                f"{where}: tensor {self.name!r} has dtype {self.dtype!r}.",
                expected=f"one of {', '.join(DTYPE_BITS)}.",
            )
        if len(self.shape) > MAX_RANK:
            raise ManifestShapeError(
                f"{where}: tensor {self.name!r} has {len(self.shape)} dimensions.",
                expected=f"at most {MAX_RANK}.",
            )
        for dim in self.shape:
            if isinstance(dim, int) and dim >= 0:
                continue
            if isinstance(dim, str) and _DIM_NAME.fullmatch(dim):
                continue
            raise ManifestShapeError(
                f"{where}: tensor {self.name!r} has dimension {dim!r}.",
                expected="a non-negative integer or a name like 'batch'.",
            )


def num_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a dense tensor, rounded up to whole bytes for sub-byte types."""
    elements = 1
    for dim in shape:
        elements *= dim
    return (elements * DTYPE_BITS[dtype] + 7) // 8


def resolve(shape: Shape, dims: Mapping[str, int]) -> tuple[int, ...]:
    """Replace named dimensions by their values; a name without a value is an error."""
    missing = [dim for dim in shape if isinstance(dim, str) and dim not in dims]
    if missing:
        raise BindingError(
            f"Shape {shape} needs values for {missing}.",
            expected=f"a value for each of its names; given were {sorted(dims)}.",
        )
    return tuple(dims[dim] if isinstance(dim, str) else dim for dim in shape)


def unify(spec: TensorSpec, shape: Sequence[int], dims: dict[str, int]) -> None:
    """Match a concrete ``shape`` with ``spec``, adding the named dimensions to ``dims``."""
    fits = len(shape) == len(spec.shape) and all(
        actual == (wanted if isinstance(wanted, int) else dims.setdefault(wanted, actual))
        for wanted, actual in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise BindingError(
            f"Tensor {spec.name!r} was given shape {tuple(shape)}.",
            expected=f"shape {spec.shape} with {dims}.",
        )
