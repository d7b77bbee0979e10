"""``sana-rt generate`` in an environment that has the ``[cpu]`` extra and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Distributions, Environment, environment

#: What makes bundles or plays them elsewhere; a player on a CPU has none of it.
ABSENT = ("torch", "onnx", "transformers", "diffusers", "safetensors", "tensorrt_rtx", "cuda")

PLAY = """\
import sys
from pathlib import Path

from sana_rt.runtime.video import read_video

frames = list(read_video(Path(sys.argv[1])))
assert [frame.shape for frame in frames] == [(32, 48, 3)] * 9, frames
print(len(frames))
"""


@pytest.fixture(scope="module")
def cpu(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with the packages that play bundles on a CPU."""
    return environment(tmp_path_factory.mktemp("cpu") / "venv", distributions.wheel, "cpu")


@pytest.mark.parametrize("name", ABSENT)
def test_packages_of_the_other_stages_are_not_there(cpu: Environment, name: str) -> None:
    done = cpu.run("python", "-c", f"import {name}", check=False)
    assert done.returncode != 0
    assert f"No module named '{name}'" in done.stderr


def test_a_prompt_becomes_a_video(cpu: Environment, small_bundle: Path, tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    size = ("--height", "32", "--width", "48", "--num-frames", "9", "--num-inference-steps", "2")
    done = cpu.run(
        "sana-rt", "generate", small_bundle, "a red circle moving to the right",
        "--output", video, "--threads", "1", "--check-finite", *size,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{video}\n"
    assert cpu.run("python", "-c", PLAY, video).stdout == "9\n"
