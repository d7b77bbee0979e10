"""Every error class is raised somewhere: an unused one promises what nobody keeps."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from sana_rt import errors
from sana_rt.errors import SanaRTError

PACKAGE = Path(__file__).parents[2] / "src/sana_rt"
STAGES = ("export", "quantize", "engines", "runtime", "benchmarks")
CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, SanaRTError)
}


@pytest.fixture(scope="module")
def called() -> set[str]:
    """The names that are called anywhere in the code, outside errors.py."""
    folders = [PACKAGE, *(PACKAGE / stage for stage in STAGES)]
    return {
        node.func.id
        for folder in folders
        for path in folder.rglob("*.py")
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_is_raised_or_is_the_base_of_one(name: str, called: set[str]) -> None:
    heirs = {other for other, value in CLASSES.items() if issubclass(value, CLASSES[name])}
    assert heirs & called
