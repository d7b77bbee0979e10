"""Quantized variants: the library plays on the CPU what Python plays there, with its frames."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from tests.native.library import Library, NativeError

import sana_rt
from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.errors import BackendError

EMULATION, DEVICE = "nvfp4-mixed-emulation", "nvfp4-mixed"
CLIP: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def quantized(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle, its emulation of NVFP4, and the same declared to be for TensorRT."""
    root = Path(shutil.copytree(small_bundle, tmp_path_factory.mktemp("quantized") / "bundle"))
    done = CliRunner().invoke(cli, ["quantize", str(root), "--recipe", "mixed"])
    assert done.exit_code == 0, done.output
    manifest = Bundle.read(root).manifest
    emulation = manifest.variant(EMULATION)
    assert emulation.quantization is not None
    made = msgspec.structs.replace(emulation.quantization, form="device")
    device = msgspec.structs.replace(emulation, quantization=made)
    variants = {**manifest.variants, DEVICE: device}
    bundles.save(root, msgspec.structs.replace(manifest, variants=variants))
    return root


def test_emulations_are_played_with_the_frames_of_python(library: Library, quantized: Path) -> None:
    with sana_rt.open(quantized, variant=EMULATION, threads=1) as player:
        expected = np.concatenate(list(player.generate("a red circle", **CLIP)))
    session = library.open(quantized, variant=EMULATION.encode(), threads=1)
    found = np.concatenate(list(session.start("a red circle", **CLIP)))
    assert np.array_equal(found, expected)
    plain = library.open(quantized, threads=1).start("a red circle", **CLIP)
    assert not np.array_equal(np.concatenate(list(plain)), expected)


def test_what_is_for_tensorrt_is_refused_and_its_emulation_named(
    library: Library, quantized: Path
) -> None:
    with pytest.raises(BackendError, match=f"play '{EMULATION}'"):
        sana_rt.open(quantized, variant=DEVICE, backend="onnxruntime")
    with pytest.raises(NativeError, match=f"play '{EMULATION}'") as caught:
        library.open(quantized, variant=DEVICE.encode(), backend=b"onnxruntime")
    assert caught.value.name == "BackendError"
    assert "operators that only TensorRT has" in str(caught.value)
