"""The native library, built, and the bundles that it plays beside Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import filelock
import pytest
from tests.conftest import kept
from tests.native.library import Library

from sana_rt.export.checkpoint import Parts, open_checkpoint
from sana_rt.export.onnx_export import export_bundle

ROOT = Path(__file__).parents[2]
#: `make native-sanitize` names others.
BUILD = Path(os.environ.get("SANA_RT_BUILD", ROOT / "build/native")).absolute()
CHECKPOINTS = ROOT / "examples/shapes/checkpoints"


@pytest.fixture(scope="session")
def build() -> Path:
    """The build folder, brought up to date."""
    if not (BUILD / "CMakeCache.txt").exists():
        pytest.skip("the native library is not built: make native")
    with filelock.FileLock(BUILD / ".lock"):
        built = subprocess.run(
            ["cmake", "--build", BUILD], capture_output=True, text=True, check=False
        )
    assert built.returncode == 0, built.stdout[-4000:]
    return BUILD


@pytest.fixture(scope="session")
def library(build: Path) -> Library:
    """The shared library through ctypes."""
    return Library(build / "libsana_rt.so")


@pytest.fixture(scope="session")
def shapes(pytestconfig: pytest.Config) -> Path:
    """The small trained model as a bundle."""
    return kept(
        pytestconfig, "shapes", lambda folder: export_bundle(open_checkpoint(CHECKPOINTS), folder)
    )


@pytest.fixture(scope="session")
def causal_shapes(pytestconfig: pytest.Config) -> Path:
    """Its block-causal sibling, which can be streamed."""
    return kept(pytestconfig, "causal-shapes", _export_causal)


def _export_causal(folder: Path) -> None:
    parts = Parts(*(CHECKPOINTS / name for name in ("vae", "text_encoder", "tokenizer")))
    causal = CHECKPOINTS / "causal"
    checkpoint = open_checkpoint(
        causal / "longsana.pt", preset=str(causal / "model.json"), parts=parts
    )
    export_bundle(checkpoint, folder)
