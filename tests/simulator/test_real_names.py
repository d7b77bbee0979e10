"""What the simulated driver and the stand-in have is what the real packages have.

And what the backends use exists in the real packages.
"""

from __future__ import annotations

import ast
import ctypes
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import driver
from tests.simulator.card import Card
from tests.simulator.child import real_environment
from tests.simulator.library import SOURCE
from tests.simulator.simulated_cuda import SONAME

from sana_rt.runtime import backends

DECLARATIONS = Path(driver.__file__).parent / "cydriver.pxd"
BACKENDS = sorted(Path(backends.__file__).parent.glob("*.py"))


def prototypes(text: str, start: str) -> dict[str, str]:
    """Parameters by function, without blanks that mean nothing."""
    pattern = rf"{start} CUresult (cu\w+)\(([^)]*)\)"
    return {
        name: re.sub(r"\s+", " ", parameters).replace("std::", "").strip()
        for name, parameters in re.findall(pattern, text)
    }


OURS = prototypes((SOURCE / "driver.cpp").read_text(), "API")


def plain(name: str) -> str:
    """Without the version of the signature."""
    return re.sub(r"_v\d$|WithFlags$", "", name)


@pytest.mark.parametrize("name", OURS)
def test_a_function_of_the_driver_has_the_real_signature(name: str) -> None:
    real = prototypes(DECLARATIONS.read_text(), "cdef")
    assert OURS[name] == real[plain(name)]


def test_cuda_python_finds_each_function_where_it_is(card: Card) -> None:
    """By its name, and by the version of CUDA that its signature came with."""
    from cuda.bindings._internal import driver as internal

    library = ctypes.CDLL(SONAME)
    found = internal._inspect_function_pointers()
    for name in OURS:
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        assert address in found.values(), f"{name} is not found"
    assert card.stream


# --- The stand-in ---


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """What the installed tensorrt_rtx has."""
    script = str(Path(__file__).parent / "describe_tensorrt.py")
    run = subprocess.run(
        [sys.executable, script], env=real_environment(), capture_output=True, check=True
    )
    described: dict[str, Any] = json.loads(run.stdout)
    return described


def stand_in() -> Any:
    import tensorrt_rtx

    assert Path(__file__).parent in Path(tensorrt_rtx.__file__).parents
    return tensorrt_rtx


def test_the_stand_in_has_the_version_of_the_real_one(real: dict[str, Any]) -> None:
    assert stand_in().__version__ == real["version"]


def test_enumerations_are_the_real_ones(real: dict[str, Any]) -> None:
    trt, compared = stand_in(), 0
    for name in trt.__all__:
        kind = getattr(trt, name)
        if issubclass(kind, IntEnum):
            compared += 1
            members = {member: int(value) for member, value in kind.__members__.items()}
            assert members == real["classes"][name]["members"], name
    assert compared == 8


def public(kind: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(kind).items():
        if not name.startswith("_"):
            yield name, value


def parameters(documentation: str) -> list[list[str]]:
    """The names of the parameters of each overload, from the signatures of pybind11."""
    found = re.findall(r"\w+\(self: [\w.]+((?:, \w+: [^\n]*)?)\) -> ", documentation)
    return [re.findall(r", (\w+): ", each) for each in found]


def test_classes_have_no_names_and_parameters_that_the_real_ones_have_not(
    real: dict[str, Any],
) -> None:
    trt, compared = stand_in(), 0
    for name in trt.__all__:
        kind = getattr(trt, name)
        attributes = real["classes"][name]["attributes"]
        if issubclass(kind, IntEnum):
            continue
        for attribute, value in public(kind):
            assert attribute in attributes, f"{name}.{attribute}"
            if inspect.isfunction(value):
                compared += 1
                ours = list(inspect.signature(value).parameters)[1:]
                overloads = parameters(attributes[attribute])
                assert ours in overloads, f"{name}.{attribute}{ours} is none of {overloads}"
    assert compared > 30


# --- What the backends use ---


def chains(tree: ast.AST, roots: set[str]) -> Iterator[list[str]]:
    """The attributes of each ``root.a.b``, without the root."""
    for node in ast.walk(tree):
        names, base = list[str](), node
        while isinstance(base, ast.Attribute) and ast.unparse(base) not in roots:
            names.insert(0, base.attr)
            base = base.value
        if names and ast.unparse(base) in roots:
            yield names


def test_what_the_backends_use_of_cuda_exists() -> None:
    used = set()
    for path in BACKENDS:
        tree = ast.parse(path.read_text())
        if "cuda.bindings" not in path.read_text():
            continue
        for first, *rest in chains(tree, {"cuda"}):
            assert hasattr(driver, first), f"{path.name}: {first}"
            value = getattr(driver, first)
            for name in rest:
                assert hasattr(value, name), f"{path.name}: {first}.{name}"
                value = getattr(value, name)
            used.add(first)
    assert "cuMemAlloc" in used
    functions = {name for name in used if name.startswith("cu")}
    assert functions <= {plain(name) for name in OURS}, "the simulated driver has them all"


def test_what_the_backends_use_of_tensorrt_exists(real: dict[str, Any]) -> None:
    for path in BACKENDS:
        tree = ast.parse(path.read_text())
        for first, *rest in chains(tree, {"api", "self._api"}):
            if first == "__version__":
                continue
            assert first in real["classes"], f"{path.name}: {first}"
            if rest:
                known = real["classes"][first]["attributes"]
                assert rest[0] in known, f"{path.name}: {first}.{rest[0]}"
