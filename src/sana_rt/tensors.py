"""Names of dtypes, and shapes whose dimensions may be named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Annotated, Final

import msgspec
from msgspec import Meta

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
MAX_DIM: Final = (1 << 31) - 1
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DIM_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of a graph: ``name``, ``dtype`` and ``shape`` with named dims.

    A dimension is a non-negative integer or a name such as ``"batch"``; the same name is
    the same number everywhere in one graph.
    """

    name: str
    dtype: Annotated[str, Meta(extra_json_schema={"enum": list(DTYPE_BITS)})]
    shape: Annotated[Shape, Meta(extra_json_schema={"maxItems": MAX_RANK})]

    def __str__(self) -> str:
        """Name, type and shape, for messages."""
        return f"{self.name!r} ({self.dtype} [{', '.join(map(str, self.shape))}])"

    def check(self, where: str) -> None:
        """Raise :class:`ManifestShapeError` if the spec breaks a rule of the format."""
        if not _NAME.fullmatch(self.name):
            raise ManifestShapeError(
                f"{where}: a tensor is called {self.name!r}.",
                expected="a name like 'state_s': lower-case letters, digits and '_', at most 64.",
            )
        check_dtype(self.dtype, f"{where}: tensor {self.name!r}")
        if len(self.shape) > MAX_RANK:
            raise ManifestShapeError(
                f"{where}: tensor {self.name!r} has {len(self.shape)} dimensions.",
                expected=f"at most {MAX_RANK}.",
            )
        for dim in self.shape:
            if not _is_dim(dim):
                raise ManifestShapeError(
                    f"{where}: tensor {self.name!r} has dimension {dim!r}.",
                    expected=f"an integer from 0 to {MAX_DIM:,} or a name like 'batch'.",
                )


def first_difference(
    found: Iterable[TensorSpec], wanted: Iterable[TensorSpec]
) -> tuple[int, str, str] | None:
    """Where two lists differ first: the index, and what is there on both sides, in words."""
    for index, (one, other) in enumerate(zip_longest(found, wanted)):
        if one != other:
            return index, str(one or "nothing"), str(other or "nothing")
    return None


def check_dtype(dtype: str, where: str) -> None:
    """Raise :class:`ManifestShapeError` unless ``dtype`` is the name of one."""
    if dtype not in DTYPE_BITS:
        raise ManifestShapeError(
            f"{where} has dtype {dtype!r}.", expected=f"one of {', '.join(DTYPE_BITS)}."
        )


def _is_dim(dim: Dim) -> bool:
    if isinstance(dim, str):
        return _DIM_NAME.fullmatch(dim) is not None
    return 0 <= dim <= MAX_DIM


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
