"""The Makefile, with a program in Python's place that records what it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TASKS = {
    *("help", "setup", "demo", "engines", "generate", "native", "native-sanitize", "native-fuzz"),
    *("check", "lint", "types", "test", "test-everywhere", "fuzz", "faults"),
    *("simulate", "sbom", "bench", "gpu-checks", "clean"),
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
    script.write_text('#!/bin/sh\nfor word; do :; done; printf "%s" "$word" > prompt\n')
    script.chmod(0o755)
    command = ["make", f"PYTHON={project / 'python'}", "demo"]
    environment = {"PATH": "/usr/bin:/bin", "PROMPT": prompt}
    subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)
    assert (project / "prompt").read_text() == prompt


def _asked(folder: Path, *arguments: str) -> list[str]:
    """What `sana-rt` is asked by a task."""
    assert _make(folder, "setup").returncode == 0
    script = folder / ".venv/bin/sana-rt"
    script.write_text('#!/bin/sh\necho "$*" >> asked\n')
    script.chmod(0o755)
    (folder / "asked").unlink(missing_ok=True)
    assert _make(folder, *arguments).returncode == 0
    return (folder / "asked").read_text().splitlines()


def test_demo_generate_and_engines_meet_in_one_bundle(project: Path) -> None:
    (demo,) = _asked(project, "demo")
    assert demo.startswith("demo --output out/demo --checkpoint examples/shapes/checkpoints")
    bundle = "out/demo/bundle"
    export, generate = _asked(project, "generate")
    assert export == f"export examples/shapes/checkpoints {bundle}"
    assert generate.startswith(f"generate {bundle} ")
    assert generate.endswith(" --output out/video.mp4 --overwrite")
    (project / bundle).mkdir(parents=True)
    assert _asked(project, "generate") == [generate], "what is there is not exported"
    exports = [f"export --overwrite examples/shapes/checkpoints {bundle}"]
    exports.append(f"{exports[0]} --dtype bf16")
    build = f"build {bundle} --variant bf16 --target sm120"
    assert _asked(project, "engines") == [*exports, build]


def test_a_bundle_of_ones_own_is_not_replaced(project: Path) -> None:
    asked = _asked(project, "engines", "BUNDLE=mine", "CHECKPOINT=theirs", "RECIPE=mixed")
    assert asked == [
        "export theirs mine",
        "export theirs mine --dtype bf16",
        "quantize mine --recipe mixed",
        "build mine --variant mixed --target sm120",
    ]


def test_continuous_integration_runs_the_two_commands() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make check", "make demo"]
    assert "set -euo pipefail" in lines
