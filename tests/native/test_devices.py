"""What the native library says of devices, where there is none and on the simulated driver."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.native.library import Library, NativeError
from tests.simulator import library as simulator
from tests.unit.runtime.test_onnxruntime_rtx import STUBS

PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
PLUGIN = "libonnxruntime_providers_nv_tensorrt_rtx.so"
HAS_DRIVER = Path("/proc/driver/nvidia").exists()


def _plugin() -> Path | None:
    """The plug-in's library, if it is installed or SANA_RT_PLUGIN names it."""
    if named := os.environ.get("SANA_RT_PLUGIN"):
        return Path(named)
    spec = importlib.util.find_spec(PACKAGE)
    return Path(str(spec.origin)).parent / PLUGIN if spec else None


def _described(build: Path, **environment: str) -> dict[str, str]:
    """What a process says of each backend: why it is not available, or nothing."""
    program = (
        "import sys; from pathlib import Path; from tests.native.library import Library\n"
        "for name, reason in Library(Path(sys.argv[1])).devices().items():\n"
        "    print(name, reason.replace(chr(10), ' '), sep='\\t')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, build / "libsana_rt.so"],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("\t", 1) for line in done.stdout.splitlines())


def test_memory_of_a_gpu(build: Path, pytestconfig: pytest.Config) -> None:
    ran = subprocess.run(
        [build / "tests/device_tests"],
        env={**os.environ, "LD_LIBRARY_PATH": str(simulator.folder(pytestconfig))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]


@pytest.mark.skipif(HAS_DRIVER, reason="there is a driver")
def test_without_a_card_each_backend_says_why(build: Path) -> None:
    described = _described(build)
    assert list(described) == ["onnxruntime-cuda", "onnxruntime-rtx", "onnxruntime"]
    assert "pip install onnxruntime-gpu" in described["onnxruntime-cuda"]
    assert "NVIDIA's driver is not installed" in described["onnxruntime-rtx"]
    assert described["onnxruntime"] == ""


def test_without_the_plug_in_its_command_is_said(
    build: Path, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    folder = str(simulator.folder(pytestconfig))
    described = _described(build, LD_LIBRARY_PATH=folder, SANA_RT_PLUGIN=str(tmp_path / "x.so"))
    assert f"is not at [{tmp_path / 'x.so'}]" in described["onnxruntime-rtx"]
    assert "pip install onnxruntime-ep-nv-tensorrt-rtx" in described["onnxruntime-rtx"]


@pytest.mark.skipif(HAS_DRIVER, reason="there is a driver")
def test_what_cannot_be_played_says_why_of_each_backend(library: Library, shapes: Path) -> None:
    for backend in (b"onnxruntime-cuda", b"onnxruntime-rtx"):
        with pytest.raises(NativeError, match=r"install") as caught:
            library.open(shapes, backend=backend)
        assert caught.value.name == "BackendError"


#: What the library calls of the driver; a card is there as far as these say.
DRIVER = (
    *("cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"),
    *("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2", "cuMemGetInfo_v2"),
    *("cuMemAlloc_v2", "cuMemFree_v2", "cuMemcpyAsync", "cuMemsetD8Async", "cuStreamCreate"),
    *("cuStreamDestroy_v2", "cuEventCreate", "cuEventRecord", "cuEventQuery"),
    *("cuEventDestroy_v2", "cuGetErrorName"),
)


def _stub(folder: Path, name: str, functions: str) -> None:
    (folder / "stub.c").write_text(functions)
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / name), str(folder / "stub.c")]
    subprocess.run(command, check=True)


def _returning(number: int, names: Iterable[str]) -> str:
    return "".join(f"int {name}(void) {{ return {number}; }}\n" for name in names)


@pytest.mark.skipif(_plugin() is None or HAS_DRIVER, reason='needs pip install "sana-rt[plugin]"')
def test_the_real_plug_in_is_loaded_and_finds_no_card(build: Path, tmp_path: Path) -> None:
    """Beside a driver that has a card for us, but none for CUDA's runtime.

    Without the library that describes cards, the plug-in does not load.
    """
    found = ("cuInit", "cuCtxSetCurrent")
    refused = [name for name in STUBS["libcuda.so.1"] if name not in found]
    _stub(tmp_path, "libcuda.so.1", _returning(0, (*DRIVER, *found)) + _returning(100, refused))
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "SANA_RT_PLUGIN": str(_plugin())}
    without = _described(build, **environment)["onnxruntime-rtx"]
    assert "cannot load NVIDIA's plug-in" in without
    assert "libnvidia-ml.so.1" in without
    assert "install NVIDIA's driver" in without
    described = _returning(100, STUBS["libnvidia-ml.so.1"])
    _stub(tmp_path, "libnvidia-ml.so.1", described + "char *nvmlErrorString(int e) {return 0;}")
    loaded = _described(build, **environment)["onnxruntime-rtx"]
    assert "finds no card that it can use" in loaded
