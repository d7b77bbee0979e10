"""The tests in C++: of the parts, and of the interface on bundles."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
CASES = {
    "manifest": "manifests",
    **{name: f"native/fuzz/{name}" for name in ("tokenizer", "state", "array")},
}


def _passes(program: Path, *arguments: Path, **environment: str) -> None:
    ran = subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]


def test_parts(build: Path) -> None:
    _passes(build / "tests/unit_tests")


@pytest.mark.parametrize("target", CASES)
def test_files_of_fuzzers(target: str, build: Path) -> None:
    """Seeds, and what was found: read, or refused, without a crash and in time."""
    _passes(build / f"tests/replay_{target}", DATA / CASES[target])


def test_interface(build: Path, small_bundle: Path, causal_bundle: Path) -> None:
    _passes(
        build / "tests/play_tests",
        SANA_RT_BUNDLE=str(small_bundle),
        SANA_RT_CAUSAL_BUNDLE=str(causal_bundle),
        SANA_RT_CANCELS="1000",
    )
