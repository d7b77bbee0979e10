"""``sana-rt doctor`` on this machine, and on machines that are played."""

from __future__ import annotations

import enum
import importlib.metadata
import json
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from sana_rt.cli import COMMANDS, cli, doctor


class Status(enum.IntEnum):
    """What the functions of the driver answer first."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100


class Attribute(enum.Enum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class Driver(types.ModuleType):
    """Plays ``cuda.bindings.driver`` with the cards given as (name, capability, bytes).

    The order of arguments and results is that of cuda-python 13.
    """

    CUdevice_attribute = Attribute

    def __init__(self, *cards: tuple[str, tuple[int, int], int]) -> None:
        super().__init__("cuda.bindings.driver")
        self.cards = cards

    def cuInit(self, flags: int) -> tuple[Status]:  # noqa: ARG002, N802
        return (Status.CUDA_SUCCESS if self.cards else Status.CUDA_ERROR_NO_DEVICE,)

    def cuDriverGetVersion(self) -> tuple[Status, int]:  # noqa: N802
        return Status.CUDA_SUCCESS, 13010

    def cuDeviceGetCount(self) -> tuple[Status, int]:  # noqa: N802
        return Status.CUDA_SUCCESS, len(self.cards)

    def cuDeviceGet(self, ordinal: int) -> tuple[Status, int]:  # noqa: N802
        return Status.CUDA_SUCCESS, ordinal

    def cuDeviceGetAttribute(self, which: Attribute, device: int) -> tuple[Status, int]:  # noqa: N802
        major, minor = self.cards[device][1]
        is_major = which is Attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return Status.CUDA_SUCCESS, major if is_major else minor

    def cuDeviceGetName(self, length: int, device: int) -> tuple[Status, bytes]:  # noqa: N802
        return Status.CUDA_SUCCESS, self.cards[device][0].encode().ljust(length, b"\0")

    def cuDeviceTotalMem(self, device: int) -> tuple[Status, int]:  # noqa: N802
        return Status.CUDA_SUCCESS, self.cards[device][2]


def _play(monkeypatch: pytest.MonkeyPatch, driver: types.ModuleType) -> None:
    bindings = types.ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    for module in (types.ModuleType("cuda"), bindings, driver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(doctor, "_has_cuda_bindings", lambda: True)


@pytest.fixture(autouse=True)
def broken(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is said of imports, which take seconds; nothing is broken until a test says so."""
    said: dict[str, str] = {}
    monkeypatch.setattr(doctor.import_check, "broken", lambda *_, **__: dict(said))
    return said


def _run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["doctor", *arguments], catch_exceptions=False)
    assert result.exit_code == exit_code
    return result


def _report() -> dict[str, Any]:
    report: dict[str, Any] = json.loads(_run("--json").stdout)
    return report


def test_the_machine_is_this_one() -> None:
    machine = _report()["machine"]
    assert machine["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert machine["memory_bytes"] == psutil.virtual_memory().total
    assert machine["cores"] == len(os.sched_getaffinity(0))


def test_memory_that_nobody_tells_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.machine, "memory_bytes", lambda: None)
    assert re.search(r"^memory +unknown", _run().stdout, re.MULTILINE)


def test_packages_and_versions_are_those_installed() -> None:
    extras = {extra["name"]: extra for extra in _report()["extras"]}
    assert set(extras) == {"cpu", "rtx", "plugin", "build", "bench"}
    cpu = {package["name"]: package for package in extras["cpu"]["packages"]}
    assert set(cpu) == {"av", "numpy", "onnxruntime", "tokenizers"}
    assert cpu["numpy"]["installed"] == importlib.metadata.version("numpy")
    assert extras["cpu"]["install"] is None


def test_every_command_has_a_line() -> None:
    assert {*COMMANDS} <= {ability["what"] for ability in _report()["abilities"]}


def test_every_package_here_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, so all names of modules are right and none is broken."""
    monkeypatch.undo()  # of the answers that are played
    extras = {extra["name"]: extra for extra in _report()["extras"]}
    assert [name for name in ("cpu", "build", "bench") if extras[name]["install"]] == []
    packages = [package for extra in extras.values() for package in extra["packages"]]
    assert [package["name"] for package in packages if package["broken"]] == []


def test_a_broken_package_is_a_line_and_fails(broken: dict[str, str]) -> None:
    broken["torch"] = "ImportError: libtorch.so: cannot open shared object file"
    result = _run(exit_code=1)
    assert re.search(r"^build +torch +\S+, broken: ImportError: libtorch", result.stdout, re.M)
    assert re.search(r"^no +export +broken: torch: ImportError", result.stdout, re.M)
    assert re.search(r"^yes +generate", result.stdout, re.M)


def test_a_broken_onnxruntime_has_no_providers(broken: dict[str, str]) -> None:
    broken["onnxruntime"] = "its import ends the process (signal 11)"
    result = _run("--json", exit_code=1)
    report = json.loads(result.stdout)
    assert report["onnxruntime_providers"] == []
    missing = {ability["what"]: ability["missing"] for ability in report["abilities"]}
    assert "signal 11" in missing["generate"]
    assert missing["inspect"] == ""


def test_broken_bindings_are_not_asked_for_cards(broken: dict[str, str]) -> None:
    broken["cuda.bindings.driver"] = "its import does not end in 120 s"
    report = json.loads(_run("--json", exit_code=1).stdout)
    assert report["nvidia"]["gpus"] == []
    assert "does not end" in report["nvidia"]["note"]


def test_a_missing_package_comes_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = importlib.metadata.version

    def without_av(name: str) -> str:
        if name == "av":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_av)
    report = _report()
    cpu = next(extra for extra in report["extras"] if extra["name"] == "cpu")
    assert cpu["install"] == 'pip install "sana-rt[cpu]"'
    missing = {ability["what"]: ability["missing"] for ability in report["abilities"]}
    assert missing["generate"] == missing["stream"] == cpu["install"]
    assert missing["demo"] == 'pip install "sana-rt[build,cpu]"'
    assert missing["inspect"] == missing["verify"] == ""
    shown = _run().stdout
    assert re.search(r"^cpu +av +missing", shown, flags=re.MULTILINE)
    assert f"for all of cpu: {cpu['install']}" in shown


def test_onnxruntime_with_cuda_takes_the_place_of_onnxruntime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_gpu(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.31.0" if name == "onnxruntime-gpu" else "1"

    monkeypatch.setattr(importlib.metadata, "version", only_gpu)
    cpu = next(extra for extra in _report()["extras"] if extra["name"] == "cpu")
    assert cpu["install"] is None
    assert {package["name"]: package["installed"] for package in cpu["packages"]}[
        "onnxruntime"
    ] == "1.31.0"


def test_cards_are_shown_with_their_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    _play(
        monkeypatch,
        Driver(
            ("NVIDIA GeForce RTX 5090", (12, 0), 32 << 30),
            ("NVIDIA GeForce RTX 3090", (8, 6), 24 << 30),
        ),
    )
    nvidia = _report()["nvidia"]
    assert nvidia["driver"] == "CUDA 13.1"
    assert nvidia["gpus"] == [
        {
            "name": "NVIDIA GeForce RTX 5090",
            "compute_capability": "12.0",
            "memory_bytes": 32 << 30,
            "formats": ["BF16", "FP8", "NVFP4"],
        },
        {
            "name": "NVIDIA GeForce RTX 3090",
            "compute_capability": "8.6",
            "memory_bytes": 24 << 30,
            "formats": ["BF16"],
        },
    ]
    assert re.search(r"RTX 5090 +12\.0 +32\.0 GiB +BF16 FP8 NVFP4", _run().stdout)


def test_a_driver_without_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    _play(monkeypatch, Driver())
    nvidia = _report()["nvidia"]
    assert nvidia["gpus"] == []
    assert "cuInit answered CUDA_ERROR_NO_DEVICE" in nvidia["note"]


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-python raises a RuntimeError where the driver's library cannot be loaded."""
    driver = Driver()

    def fail(_: int) -> None:
        raise RuntimeError("libcuda.so.1 is not there")

    driver.cuInit = fail  # type: ignore[assignment, method-assign]
    _play(monkeypatch, driver)
    assert "libcuda.so.1 is not there" in _run().stdout


@pytest.mark.parametrize(
    ("proc", "driver", "note"),
    [
        (None, None, "no NVIDIA driver is loaded"),
        ("NVRM version: 575\nGCC version: 12\n", "NVRM version: 575", 'install "sana-rt[rtx]"'),
    ],
)
def test_without_cuda_python_the_kernel_says_if_there_is_a_driver(
    proc: str | None,
    driver: str | None,
    note: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = tmp_path / "version"
    if proc:
        version.write_text(proc)
    monkeypatch.setattr(doctor, "_has_cuda_bindings", lambda: False)
    monkeypatch.setattr(doctor, "_NVIDIA_VERSION", version)
    nvidia = _report()["nvidia"]
    assert nvidia["driver"] == driver
    assert note in nvidia["note"]


@pytest.mark.parametrize(
    ("capability", "formats"),
    [((12, 0), "BF16 FP8 NVFP4"), ((8, 9), "BF16 FP8"), ((9, 0), "BF16"), ((7, 5), "FP32")],
)
def test_formats(capability: tuple[int, int], formats: str) -> None:
    assert " ".join(doctor.formats(*capability)) == formats
