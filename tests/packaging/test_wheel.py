"""The wheel holds the tree: every module and every data file, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

import sana_rt

from .conftest import ROOT, Distributions

NATIVE = "runtime/native"  # a library of its own, which CMake builds
NOT_SHIPPED = ("*.md", "results/*", "__pycache__/*")  # what no code reads at run time


def _files(tree: Path) -> dict[str, bytes]:
    """The files a wheel must hold, by their place in it; symlinks are followed."""
    source = tree / "src"
    package = source / "sana_rt"
    links = [path for path in package.iterdir() if path.is_symlink()]
    return {
        path.relative_to(source).as_posix(): path.read_bytes()
        for folder in (package, *links)
        for path in folder.rglob("*")
        if path.is_file()
        and not any(path.match(pattern) for pattern in NOT_SHIPPED)
        and NATIVE not in path.as_posix()
    }


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _metadata(wheel: Path) -> dict[str, bytes]:
    return {
        name.split(".dist-info/")[1]: data
        for name, data in _contents(wheel).items()
        if ".dist-info/" in name
    }


@pytest.mark.parametrize("name", ["wheel", "wheel_of_tree"])
def test_a_wheel_holds_exactly_the_tree(name: str, distributions: Distributions) -> None:
    code = {
        path: data
        for path, data in _contents(getattr(distributions, name)).items()
        if ".dist-info/" not in path
    }
    expected = _files(distributions.tree)
    assert sorted(code) == sorted(expected)
    assert code == expected


def test_the_stages_are_in_the_wheel(distributions: Distributions) -> None:
    """A checkout whose links became text files would build a wheel without them."""
    folders = {path.split("/")[1] for path in _contents(distributions.wheel) if path.count("/") > 1}
    assert {"export", "quantize", "engines", "runtime", "benchmarks", "cli"} <= folders


def test_nothing_of_the_toy_world_is_in_the_wheel(distributions: Distributions) -> None:
    shipped = _contents(distributions.wheel)
    assert [path for path in shipped if "examples" in path or "shapes/" in path] == []
    assert [path for path, data in shipped.items() if b"from examples" in data] == []
    assert "sana_rt/cli/judge.py" not in shipped


def test_the_source_distribution_has_files_in_the_place_of_links(
    distributions: Distributions,
) -> None:
    with tarfile.open(distributions.sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]


def test_metadata(distributions: Distributions) -> None:
    metadata = Parser().parsestr(_metadata(distributions.wheel)["METADATA"].decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Name"] == "sana-rt"
    assert metadata["Version"] == sana_rt.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()


def test_licence_and_notice_come_along(distributions: Distributions) -> None:
    shipped = _metadata(distributions.wheel)
    for name in ("LICENSE", "NOTICE"):
        assert shipped[f"licenses/{name}"] == (ROOT / name).read_bytes()


def test_the_bill_of_materials_comes_along(distributions: Distributions) -> None:
    """PEP 770; and it lists what METADATA asks for, with ranges and licences."""
    shipped = json.loads(_metadata(distributions.wheel)["sboms/sana-rt.cdx.json"])
    assert (shipped["bomFormat"], shipped["specVersion"]) == ("CycloneDX", "1.6")
    assert shipped["metadata"]["component"]["purl"] == f"pkg:pypi/sana-rt@{sana_rt.__version__}"
    metadata = Parser().parsestr(_metadata(distributions.wheel)["METADATA"].decode())
    asked = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    ranges = {
        (component["name"], each["value"])
        for component in shipped["components"]
        for each in component["properties"]
    }
    assert ranges == {(each.name, str(each.specifier)) for each in asked}
    assert all(component["licenses"] for component in shipped["components"])
    names = {each["ref"] for each in shipped["dependencies"]} - {"sana-rt"}
    assert names == {component["bom-ref"] for component in shipped["components"]}


def test_the_bill_is_current() -> None:
    bill = ROOT / "release/sana-rt.cdx.json"
    command = [sys.executable, "-c", "import sbom, sys; sys.stdout.write(sbom.text())"]
    made = subprocess.run(command, cwd=bill.parent, capture_output=True, text=True, check=True)
    assert made.stdout == bill.read_text(), "run `make sbom`"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(made.stdout) is None


def test_console_script(distributions: Distributions) -> None:
    scripts = _metadata(distributions.wheel)["entry_points.txt"].decode()
    assert scripts.split() == ["[console_scripts]", "sana-rt", "=", "sana_rt.cli:main"]
