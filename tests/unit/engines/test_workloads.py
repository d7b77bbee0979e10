"""Reading workloads: those of the package, and any from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sana_rt.engines import workloads
from sana_rt.engines.workloads import Workload
from sana_rt.errors import StorageError, UsageError
from sana_rt.manifest import DimRange
from sana_rt.model_spec import PRESETS


def test_reads_toml(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text(
        "num_frames = 81\nheight = {min = 480, opt = 480, max = 720}\nwidth = 832\nbatch = 1"
    )
    assert workloads.read(path) == Workload(81, DimRange(480, 480, 720), 832, batch=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_frames = ", "not a workload"),
        ("num_frames = 81\nheight = 480", "width"),
        ("num_frames = 81\nheight = 480\nwidth = 832\nheigth = 4", "heigth"),
        ("num_frames = 0\nheight = 480\nwidth = 832", "num_frames"),
        ("num_frames = 81\nheight = {min = 480, max = 720}\nwidth = 832", "opt"),
    ],
)
def test_what_is_no_workload_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "w.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        workloads.read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        workloads.read(tmp_path / "w.toml")


@pytest.mark.parametrize("name", workloads.names())
def test_workloads_of_the_package_are_for_the_defaults_of_a_model(name: str) -> None:
    workload, model = workloads.load(name), workloads.for_model(PRESETS[name])
    assert (workload.height, workload.width) == (model.height, model.width)
    assert workload.batch == model.batch


def test_names_that_do_not_exist_are_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="sana-video-2b-480p"):
        workloads.load("sana-video-2b-9999p")
