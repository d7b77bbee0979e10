"""No command but `fetch` touches the network.

`doctor`, `demo` (which exports and generates), `inspect` and `verify` are run without one by
test_readme.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state

RECIPE = """
name = "own"
description = "one layer"
[[rules]]
layers = ["block_*/attn1.to_q"]
format = "nvfp4"
reason = "r"
source = "s"
"""
WORKLOAD = "num_frames = 5\nheight = 64\nwidth = 64\n"


def _run(offline: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=offline, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "from urllib.request import urlopen; urlopen('http://example.org')",
    ],
)
def test_what_touches_the_network_ends(offline: dict[str, str], code: str) -> None:
    done = _run(offline, "-c", code)
    assert done.returncode < 0
    assert "network forbidden" in done.stderr


def test_onnx_runtime_is_told_not_to_report_its_use(tmp_path: Path) -> None:
    """By a variable that its library knows; it reports some seconds after it was loaded."""
    code = "import os, sana_rt; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    without = {key: value for key, value in os.environ.items() if not key.startswith("ORT_")}
    assert _run(without, "-c", code).stdout == "1\n"
    assert _run({**without, "ORT_DISABLE_TELEMETRY": "0"}, "-c", code).stdout == "0\n"
    assert b"ORT_DISABLE_TELEMETRY" in Path(onnxruntime_pybind11_state.__file__).read_bytes()


def test_fetch_is_the_one_that_does(offline: dict[str, str], tmp_path: Path) -> None:
    done = _run(offline, "-m", "sana_rt", "fetch", "owner/model", "--output", tmp_path)
    assert "network forbidden" in done.stderr


def test_bundles_are_quantized_and_built_without(
    offline: dict[str, str], block_bundle: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(block_bundle, tmp_path / "bundle")
    (tmp_path / "own.toml").write_text(RECIPE)
    (tmp_path / "small.toml").write_text(WORKLOAD)
    for arguments in (
        ("quantize", root, "--recipe", tmp_path / "own.toml"),
        ("build", root, "--variant", "nvfp4-own", "--workload", tmp_path / "small.toml"),
    ):
        done = _run(offline, "-m", "sana_rt", *arguments)
        assert done.returncode == 0, done.stderr
    assert len(list(root.rglob("*.plan"))) == 2
