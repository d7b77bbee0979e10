"""Plans on the simulated device: the frames are those of the backend ``onnxruntime``, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sana_rt.runtime.session import Session
from tests.simulator.simulated_cuda import Device


def play(bundle: Path, backend: str) -> list[np.ndarray]:
    with Session.open(bundle, backend=backend, threads=1, variant="fp32") as session:
        request = session.request(prompt="a red circle", num_inference_steps=4, num_frames=17)
        return list(session.generate(request))


def test_text_to_video(plans: Path, device: Device) -> None:
    expected = play(plans, "onnxruntime")
    for one, other in zip(expected, play(plans, "tensorrt"), strict=True):
        np.testing.assert_array_equal(one, other)
