"""Distributions built from a copy of the tree, and an environment that has only the wheel."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCES = (
    *("pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in", "src", "release"),
    *("export", "quantize", "engines", "runtime", "benchmarks"),
)


class Distributions(NamedTuple):
    """A copy of the tree, its source distribution, the wheel of that, and the tree's own wheel."""

    tree: Path
    sdist: Path
    wheel: Path
    wheel_of_tree: Path


class Environment(NamedTuple):
    """A virtual environment."""

    root: Path

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, with nothing inherited that changes imports."""
        program, *arguments = map(str, command)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run(
            [self.root / "bin" / program, *arguments],
            capture_output=True,
            text=True,
            check=check,
            cwd=self.root,
            env=clean,
        )


def _copy_of_tree(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


def _build(tree: Path, output: Path, *options: str) -> list[Path]:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", output, *options, tree]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(output.iterdir())


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """What a release would upload, and the wheel that `pip install .` makes."""
    folder = tmp_path_factory.mktemp("distributions")
    (folder / "tree").mkdir()
    tree = _copy_of_tree(folder / "tree")
    wheel, sdist = _build(tree, folder / "release")
    (wheel_of_tree,) = _build(tree, folder / "direct", "--wheel")
    return Distributions(tree, sdist, wheel, wheel_of_tree)


@pytest.fixture(scope="session")
def bare(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel and its base dependencies: no extra."""
    return environment(tmp_path_factory.mktemp("bare") / "venv", distributions.wheel)


def environment(folder: Path, wheel: Path, extra: str = "") -> Environment:
    """A new environment with the wheel and what it requires, and nothing else.

    The packages are those of this environment, linked, so that neither an index nor minutes are
    needed; each must be of a version that its dependents accept.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    new = Environment(folder)
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--python"]
    options = ["--quiet", "--no-index", "--no-deps"]
    command = [*pip, folder / "bin/python", "install", *options, wheel]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    where = "import sysconfig; print(sysconfig.get_path('purelib'), end='')"
    site = Path(new.run("python", "-c", where).stdout)
    (own,) = importlib.metadata.distributions(path=[str(site)])
    for distribution in _required(own, {extra} if extra else set()):
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (site / name).symlink_to(Path(str(distribution.locate_file(name))))
    return new


def _required(
    distribution: importlib.metadata.Distribution, extras: set[str]
) -> list[importlib.metadata.Distribution]:
    """What a distribution requires with some of its extras, and what that requires, and so on."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(distribution, extra) for extra in ("", *extras)]
    for parent, extra in waiting:  # grows
        for requirement in map(Requirement, parent.requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            child = importlib.metadata.distribution(requirement.name)
            assert requirement.specifier.contains(child.version, prereleases=True), requirement
            name = canonicalize_name(requirement.name)
            if name not in found or requirement.extras:
                waiting.extend((child, each) for each in ("", *requirement.extras))
            found[name] = child
    return list(found.values())
