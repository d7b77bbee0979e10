"""The Makefile, with a program in Python's place that records what it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TASKS = {
    *("help", "setup", "demo", "engines", "generate", "native"),
    *("check", "lint", "types", "test", "test-everywhere", "fuzz", "bench", "clean"),
}
PLAYED_PYTHON = """#!/bin/sh
case "$*" in
  -c*) exit 0 ;;
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
esac
echo "$*" >> log
[ -e fail ] && case "$*" in *editable*) exit 1 ;; esac
exit 0
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(PLAYED_PYTHON)
    python.chmod(0o755)
    return tmp_path


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", f"PYTHON={folder / 'python'}", *arguments]
    outside = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=outside
    )


def _installs(folder: Path) -> int:
    return (folder / "log").read_text().count("--editable")


def test_make_alone_lists_every_task(project: Path) -> None:
    shown = _make(project)
    assert shown.returncode == 0
    assert {line.split()[0] for line in shown.stdout.splitlines()} == TASKS
    assert not (project / ".venv").exists()


def test_setup_installs_once_and_again_when_the_project_changes(project: Path) -> None:
    assert _make(project, "setup").returncode == 0
    assert _make(project, "setup").returncode == 0
    assert _installs(project) == 1
    ready = (project / ".venv/.ready").stat().st_mtime
    os.utime(project / "pyproject.toml", (ready + 1, ready + 1))
    assert _make(project, "setup").returncode == 0
    assert _installs(project) == 2


def test_an_interrupted_setup_fails_and_the_next_starts_clean(project: Path) -> None:
    (project / "fail").touch()
    assert _make(project, "setup").returncode != 0
    (project / ".venv/half-installed").touch()
    (project / "fail").unlink()
    assert _make(project, "setup").returncode == 0
    assert not (project / ".venv/half-installed").exists()
    assert _installs(project) == 2


def test_an_environment_made_by_hand_is_kept(project: Path) -> None:
    (project / ".venv").mkdir()
    (project / ".venv/mine").touch()
    assert _make(project, "setup").returncode == 0
    assert (project / ".venv/mine").exists()


def test_a_python_that_is_too_old_is_refused(project: Path) -> None:
    refused = _make(project, "setup", "PYTHON=false")
    assert refused.returncode != 0
    assert "setup needs Python 3.11" in refused.stderr
    assert not (project / ".venv").exists()


def test_a_prompt_may_hold_any_character(project: Path) -> None:
    prompt = 'it\'s "so" $HOME `x` 圆'
    script = project / ".venv/bin/sana-rt"
    assert _make(project, "setup").returncode == 0
    script.write_text('#!/bin/sh\nprintf "%s" "$6" > prompt\n')
    script.chmod(0o755)
    command = ["make", f"PYTHON={project / 'python'}", "demo"]
    environment = {"PATH": "/usr/bin:/bin", "PROMPT": prompt}
    subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)
    assert (project / "prompt").read_text() == prompt


def test_continuous_integration_runs_the_two_commands() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make check", "make demo"]
    assert "set -euo pipefail" in lines
