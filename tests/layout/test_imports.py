"""Who imports whom: the contracts of pyproject.toml, and what they cannot say."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/sana_rt"
STAGES = ("export", "quantize", "engines", "runtime", "benchmarks")
TENSORRT = re.compile(r"tensorrt(_\w+)?")
MAY_IMPORT_TENSORRT = {"engines/trt_api.py", "runtime/backends/trt_api.py"}
BACKEND = "tensorrt"  # which is also a module's name
MAY_ALSO = {  # where all who import it have the package
    "figures.py": {"matplotlib"},
    "tokenizer_file.py": {"tokenizers"},
}
FOUNDATION_MAY = {"click", "filelock", "msgspec", "rich"}  # what is installed without any extra


def _modules() -> dict[str, Path]:
    """The modules by their place in the package."""
    folders = [PACKAGE, *(PACKAGE / stage for stage in STAGES)]
    return {
        path.relative_to(PACKAGE).as_posix(): path
        for folder in folders
        for path in folder.rglob("*.py")
    }


def _imports(tree: ast.AST) -> Iterator[str]:
    """The packages that the code imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _names_tensorrt(tree: ast.AST) -> bool:
    """Whether code imports TensorRT, or holds the name of a module of it to import."""
    nodes = list(ast.walk(tree))
    held = {node.value for node in nodes if isinstance(node, ast.Constant)} - {BACKEND}
    held |= {name for node in nodes if isinstance(node, ast.Call) for name in _modules_in(node)}
    names = {value for value in held if isinstance(value, str)} | set(_imports(tree))
    return any(map(TENSORRT.fullmatch, names))


def _modules_in(call: ast.Call) -> Iterator[object]:
    """What a call is given as the name of a module."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "module"]
    if isinstance(call.func, ast.Attribute) and call.func.attr == "import_module":
        given += call.args
    yield from (each.value for each in given if isinstance(each, ast.Constant))


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return {name: set(_imports(ast.parse(path.read_text()))) for name, path in _modules().items()}


def test_the_contracts_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_tensorrt_is_imported_in_two_modules_only() -> None:
    modules = _modules()
    found = {name for name, path in modules.items() if _names_tensorrt(ast.parse(path.read_text()))}
    assert found == {name for name in MAY_IMPORT_TENSORRT if name in modules}


def test_the_package_does_not_import_the_examples(imports: dict[str, set[str]]) -> None:
    assert [name for name, packages in imports.items() if "examples" in packages] == []


def test_no_import_is_relative() -> None:
    relative = [
        name
        for name, path in _modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize("name", sorted(path.name for path in PACKAGE.glob("*.py")))
def test_the_foundation_imports_only_what_is_always_installed(
    name: str, imports: dict[str, set[str]]
) -> None:
    third_party = imports[name] - set(sys.stdlib_module_names) - {"sana_rt"}
    assert third_party <= FOUNDATION_MAY | MAY_ALSO.get(name, set())
