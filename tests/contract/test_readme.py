"""The README's quick start is executed, and its tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from sana_rt.cli import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICK_START = README.split("## Quick start")[1].split("\n## ")[0]
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
SECONDS = 1800  # far above what it takes, to fail rather than hang


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, offline: dict[str, str]) -> Path:
    """Where the commands of the quick start have been run, one after the other, offline."""
    folder = tmp_path_factory.mktemp("quick_start")
    (script,) = [code for language, code in FENCE.findall(QUICK_START) if language == "sh"]
    _run(["bash", "-euxo", "pipefail", "-c", script], folder, offline)
    return folder


def _run(
    command: list[str], folder: Path, variables: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**variables, "PATH": path, "NO_COLOR": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _video(path: Path) -> tuple[int, int, int]:
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        return sum(1 for _ in container.decode(stream)), stream.height, stream.width


def test_the_commands_leave_what_they_say(folder: Path) -> None:
    assert (folder / "demo/bundle/manifest.json").is_file()
    assert (folder / "demo/contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    frames, height, width = _video(folder / "demo/video.mp4")
    assert frames > 1
    assert _video(folder / "square.mp4") == (9, height, width)


def test_the_python_example_gives_the_same_clip(folder: Path) -> None:
    (example,) = [code for language, code in FENCE.findall(QUICK_START) if language == "python"]
    shown = _run([sys.executable, "-c", example], folder).stdout
    shapes = [tuple(map(int, re.findall(r"\d+", line))) for line in shown.splitlines()]
    assert sum(shape[0] for shape in shapes) == 9
    assert {shape[1:] for shape in shapes} == {(*_video(folder / "square.mp4")[1:], 3)}


def test_commands_are_those_of_the_command_line() -> None:
    rows = re.findall(r"^\| `sana-rt (\w+)` \| .+ \| (.+) \|$", README, flags=re.MULTILINE)
    expected = [
        (name, f"`[{entry.extra}]`" if entry.extra else "–") for name, entry in COMMANDS.items()
    ]
    assert rows == expected


def test_the_two_commands_are_tasks_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for task in ("demo", "check"):
        assert f"\n    make {task} " in README
        assert f"\n{task}: " in makefile
