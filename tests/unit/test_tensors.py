"""Dtype sizes against ml_dtypes and numpy, and shapes with named dimensions."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sana_rt.errors import BindingError, ManifestShapeError
from sana_rt.tensors import DTYPE_BITS, MAX_DIM, TensorSpec, num_bytes, resolve, unify

TOKENS = TensorSpec("tokens", "float32", ("batch", "frames", "rows", "columns", 24))


def _reference_bits(name: str) -> int:
    if name.startswith("float4"):
        return ml_dtypes.finfo(ml_dtypes.float4_e2m1fn).bits
    if name.startswith(("float", "bfloat")):
        return int(ml_dtypes.finfo(name).bits)
    return np.dtype(name).itemsize * 8


def test_bits_are_those_of_numpy_and_ml_dtypes() -> None:
    assert {name: _reference_bits(name) for name in DTYPE_BITS} == dict(DTYPE_BITS)


@given(st.lists(st.integers(0, 7), max_size=4))
def test_bytes_are_those_of_numpy(shape: list[int]) -> None:
    assert num_bytes("float32", shape) == np.zeros(shape, np.float32).nbytes


@pytest.mark.parametrize(("elements", "expected"), [(0, 0), (1, 1), (2, 1), (3, 2)])
def test_four_bit_elements_fill_whole_bytes(elements: int, expected: int) -> None:
    assert num_bytes("float4_e2m1", [elements]) == expected


def test_resolve_puts_values_in_the_place_of_names() -> None:
    dims = {"batch": 2, "frames": 5, "rows": 4, "columns": 8, "unused": 9}
    assert resolve(TOKENS.shape, dims) == (2, 5, 4, 8, 24)


def test_resolve_names_what_is_missing() -> None:
    with pytest.raises(BindingError, match=r"\['rows', 'columns'\]"):
        resolve(TOKENS.shape, {"batch": 2, "frames": 5})


def test_unify_learns_names_and_keeps_them() -> None:
    dims: dict[str, int] = {}
    unify(TOKENS, (2, 5, 4, 8, 24), dims)
    assert dims == {"batch": 2, "frames": 5, "rows": 4, "columns": 8}
    unify(TensorSpec("bias", "float32", ("batch", 1)), (2, 1), dims)
    with pytest.raises(BindingError, match=r"\(3, 1\)"):
        unify(TensorSpec("bias", "float32", ("batch", 1)), (3, 1), dims)


@pytest.mark.parametrize("shape", [(2, 5, 4, 8), (2, 5, 4, 8, 25), (2, 5, 4, 8, 24, 1)])
def test_unify_refuses_other_ranks_and_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(BindingError, match="tokens"):
        unify(TOKENS, shape, {})


@given(st.lists(st.integers(1, 9), max_size=6))
def test_resolve_undoes_unify(shape: list[int]) -> None:
    spec = TensorSpec("x", "float32", tuple(f"d{index}" for index in range(len(shape))))
    dims: dict[str, int] = {}
    unify(spec, shape, dims)
    assert resolve(spec.shape, dims) == tuple(shape)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (TensorSpec("x", "float8", (1,)), "float8"),
        (TensorSpec("x", "float32", (-1,)), "-1"),
        (TensorSpec("x", "float32", (MAX_DIM + 1,)), "2147483648"),
        (TensorSpec("x", "float32", ("Batch",)), "Batch"),
        (TensorSpec("x", "float32", ("b" * 33,)), "b" * 33),
        (TensorSpec("x", "float32", (1,) * 9), "9 dimensions"),
        (TensorSpec("x.1", "float32", ()), "x.1"),
    ],
)
def test_check_says_where_and_what(spec: TensorSpec, said: str) -> None:
    with pytest.raises(ManifestShapeError, match="fp32/rope") as caught:
        spec.check("fp32/rope inputs")
    assert said in str(caught.value)


def test_check_accepts_scalars_and_empty_tensors() -> None:
    TensorSpec("x", "bool", ()).check("here")
    TensorSpec("x_9", "bool", (0, MAX_DIM, "b" * 32)).check("here")
