"""Distributions built from a copy of the tree, and an environment that has only the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (
    *("pyproject.toml", "README.md", "LICENSE", "NOTICE", "src"),
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
    return environment(tmp_path_factory.mktemp("bare") / "venv", str(distributions.wheel))


def environment(folder: Path, requirement: str) -> Environment:
    """A new environment with ``requirement``, a wheel's path with extras if wanted."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    new = Environment(folder)
    installed = new.run(
        "python",
        *("-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement),
        check=False,
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return new
