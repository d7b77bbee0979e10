"""What only an NVIDIA GPU can show; skipped where ONNX Runtime has no CUDA provider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from sana_rt.runtime.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="needs an NVIDIA GPU and onnxruntime-gpu",
    ),
]

#: Eight steps with guidance in float32, TF32 products allowed: 10 bits of mantissa, so 1e-3 a
#: product at the worst, of which rounding in both directions leaves a tenth on average.
LATENTS_TOLERANCE = 1e-2


def latents(bundle: Path, backend: str) -> np.ndarray:
    session = Session.open(bundle, variant="fp32", backend=backend, threads=1)
    request = session.request(prompt="a red circle", seed=7, num_frames=9)
    return np.concatenate([chunk.latents for chunk in session.latents(request)], axis=2)


def test_latents_are_the_cpu_s(small_bundle: Path) -> None:
    on_cpu, on_gpu = latents(small_bundle, "onnxruntime"), latents(small_bundle, "onnxruntime-cuda")
    assert np.abs(on_gpu - on_cpu).max() <= LATENTS_TOLERANCE * np.abs(on_cpu).max()
    assert np.abs(on_cpu).max() > 0
