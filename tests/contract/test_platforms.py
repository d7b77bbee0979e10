"""Playing needs nothing that only Linux has; shown on Linux, with that hidden."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest

#: Runs the command without the modules and the functions that Windows has not.
WITHOUT = """
import os, signal, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for module, names in (
    (os, ("O_DIRECTORY", "getloadavg", "sched_getaffinity", "statvfs", "sysconf", "sysconf_names")),
    (signal, ("SIGALRM", "SIGHUP", "SIGXFSZ", "setitimer")),
):
    for name in names:
        delattr(module, name)
from pathlib import Path
is_file, exists = Path.is_file, Path.exists
def elsewhere(path):
    return path.parts[:2] not in {("/", "proc"), ("/", "sys"), ("/", "dev")}
Path.is_file = lambda path: elsewhere(path) and is_file(path)
Path.exists = lambda path, **options: elsewhere(path) and exists(path, **options)
from sana_rt.cli import main
main()
"""
SMALL = ("--height", "32", "--width", "48", "--threads", "1")


def _run(*arguments: object) -> str:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _frames(video: Path) -> int:
    with av.open(video) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("threads", [(), ("--threads", "1")])
def test_generate(small_bundle: Path, tmp_path: Path, threads: tuple[str, ...]) -> None:
    video, latents = tmp_path / "clip.mp4", tmp_path / "latents.npy"
    steps = ("--num-frames", 5, "--num-inference-steps", 1)
    output = ("-o", video, "--save-latents", latents)
    _run("generate", small_bundle, "a circle", *output, *steps, *SMALL[:4], *threads)
    assert _frames(video) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "latents.npy"]


def test_stream(causal_bundle: Path, tmp_path: Path) -> None:
    video, state = tmp_path / "clip.mp4", tmp_path / "state"
    options = ("--seconds", 1, "-o", video, "--save-state", state)
    _run("stream", causal_bundle, "a circle", *options, *SMALL)
    assert _frames(video) == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "state"]


def test_doctor() -> None:
    report = json.loads(_run("doctor", "--json"))
    assert report["machine"]["memory_bytes"] is None
    assert report["machine"]["cores"] >= 1
    abilities = {each["what"]: each["missing"] for each in report["abilities"]}
    assert abilities["generate"] == ""
