"""Where files lie: the links, the packages, the rooms of the tree."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/sana_rt"
STAGES = ("export", "quantize", "engines", "runtime", "benchmarks")
FOUNDATION = {
    "__init__",
    "__main__",
    "array_files",
    "bundle",
    "bundle_writer",
    "decode_window",
    "documents",
    "errors",
    "figures",
    "files",
    "frame_sizes",
    "freshness",
    "geometry",
    "graph_names",
    "interrupts",
    "machine",
    "manifest",
    "model_spec",
    "onnx_file",
    "progress",
    "recorded",
    "signatures",
    "tensors",
    "tokenizer_file",
    "weights_file",
}
TRUST = ("-c", f"safe.directory={ROOT}")  # whoever owns it and runs this
CODE_ROOMS = {"src", "tests", "examples", "release", *STAGES}
TEST_ROOMS = {
    *("unit", "parity", "contract", "fuzz", "faults", "simulator", "packaging", "layout"),
    *("native", "gpu", "data"),
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _tracked() -> list[Path]:
    """The files of the repository, new ones included, as paths from its root."""
    command = ["git", *TRUST, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]


FILES = _tracked()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_relative_link_to_its_folder(stage: str) -> None:
    link = PACKAGE / stage
    assert link.is_symlink(), "git made a text file of a link; clone with core.symlinks=true"
    assert link.readlink() == Path("../..") / stage
    assert link.resolve() == (ROOT / stage).resolve()


def test_there_are_no_other_links() -> None:
    links = {path for path in FILES if (ROOT / path).is_symlink()}
    assert links == {Path("src/sana_rt") / stage for stage in STAGES}


def test_the_packages_listed_are_those_of_the_tree() -> None:
    folders = [PACKAGE, *(PACKAGE / stage for stage in STAGES)]
    found = {
        ".".join(init.parent.relative_to(PACKAGE.parent).parts)
        for folder in folders
        for init in folder.rglob("__init__.py")
    }
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found)


def test_every_folder_with_modules_is_a_package() -> None:
    stages_and_source = {path.parent for path in FILES if path.parts[0] in {"src", *STAGES}}
    with_modules = {folder for folder in stages_and_source if list((ROOT / folder).glob("*.py"))}
    assert [folder for folder in with_modules if not (ROOT / folder / "__init__.py").exists()] == []


def test_every_module_lies_in_a_room() -> None:
    modules = [path for path in FILES if path.suffix == ".py"]
    assert [path for path in modules if path.parts[0] not in CODE_ROOMS] == []


def test_the_foundation_is_these_modules() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == FOUNDATION


def test_tests_lie_in_their_rooms() -> None:
    rooms = {path.parts[1] for path in FILES if path.parts[0] == "tests" and len(path.parts) > 2}
    assert rooms <= TEST_ROOMS


def test_unit_tests_mirror_the_folders() -> None:
    folders = {path.parent.relative_to("tests/unit") for path in FILES if _is_unit_test(path)}
    rooms = (PACKAGE, ROOT)
    assert [path for path in folders if not any((room / path).is_dir() for room in rooms)] == []


def _is_unit_test(path: Path) -> bool:
    return path.parts[:2] == ("tests", "unit") and path.name.startswith("test_")


def test_pyproject_is_the_only_configuration_file() -> None:
    others = {"setup.py", "setup.cfg", "tox.ini", "pytest.ini", "mypy.ini", "ruff.toml", ".flake8"}
    assert not others & {path.name for path in FILES}


def test_no_file_is_larger_than_a_checkpoint_may_be() -> None:
    """The small trained checkpoint is at most 8 MB; nothing else comes near."""
    assert [path for path in FILES if (ROOT / path).stat().st_size > 8_000_000] == []
