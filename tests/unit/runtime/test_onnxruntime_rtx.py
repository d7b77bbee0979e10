"""NVIDIA's plug-in for ONNX Runtime: what it is told, and what happens without it or a card.

With the plug-in installed its library is really loaded, beside a driver that has no card.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sana_rt.errors import BackendError, MissingDependencyError
from sana_rt.manifest import DimRange, Graph, Quantization, Source, Variant
from sana_rt.runtime import backends
from sana_rt.runtime.backends import onnxruntime_rtx
from sana_rt.runtime.backends.base import Artifact
from sana_rt.runtime.backends.onnxruntime_rtx import profile_shapes, provider_options
from sana_rt.tensors import TensorSpec

INPUTS = (
    TensorSpec("tokens", "bfloat16", ("batch", "frames", "rows", 112)),
    TensorSpec("constant", "float32", (2, 3)),
    TensorSpec("frame_index", "int64", ("frames",)),
)
SIZES = {
    "batch": DimRange.fixed(2),
    "frames": DimRange(1, 10, 19),
    "rows": DimRange.fixed(30),
    "length": DimRange.fixed(300),
}
ARTIFACT = Artifact("block_00", Graph("x.onnx", (), 23, INPUTS, ()), Path("x.onnx"), sizes=SIZES)
VARIANT = Variant("float32", "", Source("", "", "0" * 64), {})
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
HAS_PLUGIN = importlib.util.find_spec(PLUGIN) is not None


def test_profiles_name_the_inputs_whose_sizes_vary() -> None:
    """In the form that the library's own message asks for: input1:dim1xdim2...,input2:..."""
    assert profile_shapes(ARTIFACT, "min") == "tokens:2x1x30x112,frame_index:1"
    assert profile_shapes(ARTIFACT, "opt") == "tokens:2x10x30x112,frame_index:10"
    assert profile_shapes(ARTIFACT, "max") == "tokens:2x19x30x112,frame_index:19"


def test_the_plug_in_works_on_our_stream_and_captures_nothing() -> None:
    options = provider_options(ARTIFACT, 0xABC, Path("kernels"))
    assert options == {
        "has_user_compute_stream": "1",
        "user_compute_stream": "2748",
        "enable_cuda_graph": "0",
        "nv_runtime_cache_path": "kernels",
        "nv_profile_min_shapes": "tokens:2x1x30x112,frame_index:1",
        "nv_profile_opt_shapes": "tokens:2x10x30x112,frame_index:10",
        "nv_profile_max_shapes": "tokens:2x19x30x112,frame_index:19",
    }
    fixed = Graph("x.onnx", (), 23, INPUTS[1:2], ())
    alone = provider_options(Artifact("x", fixed, Path("x.onnx")), 1, Path("kernels"))
    assert not [name for name in alone if "shapes" in name]


def test_graphs_for_tensorrt_are_played_as_they_are() -> None:
    """bfloat16 first; float32 too."""
    made = Quantization("max", "0" * 64, "device")
    bfloat16 = msgspec.structs.replace(VARIANT, dtype="bfloat16")
    variants = {
        "fp32": VARIANT,
        "bf16": bfloat16,
        "nvfp4-max": msgspec.structs.replace(bfloat16, quantization=made),
        "fp16": msgspec.structs.replace(VARIANT, dtype="float16"),
    }
    offers = backends.BACKENDS["onnxruntime-rtx"]().offers(variants)
    assert offers.playable == ("bf16", "nvfp4-max", "fp32")
    assert "in float16" in offers.refusals["fp16"]


@pytest.mark.skipif(HAS_PLUGIN, reason="the plug-in is installed")
def test_without_the_plug_in_the_command_is_named() -> None:
    onnxruntime_rtx._register.cache_clear()
    with pytest.raises(MissingDependencyError, match=r'pip install "sana-rt\[plugin\]"'):
        onnxruntime_rtx.device()


def test_without_a_card_or_its_packages_it_is_refused() -> None:
    with pytest.raises(BackendError, match=r"onnxruntime-rtx: .*(driver|plug-in)"):
        backends.select("onnxruntime-rtx", {"fp32": VARIANT}, None)


#: The symbols that the plug-in's library links, and which say that there is no card.
STUBS = {
    "libcuda.so.1": (
        *("cuCtxCreate_v4", "cuCtxDestroy_v2", "cuCtxGetCurrent", "cuCtxPopCurrent_v2"),
        *("cuCtxPushCurrent_v2", "cuCtxSetCurrent", "cuDestroyExternalMemory"),
        *("cuDestroyExternalSemaphore", "cuExternalMemoryGetMappedBuffer", "cuGetErrorString"),
        *("cuImportExternalMemory", "cuImportExternalSemaphore", "cuInit", "cuStreamGetCtx"),
        *("cuSignalExternalSemaphoresAsync", "cuWaitExternalSemaphoresAsync"),
    ),
    "libnvidia-ml.so.1": ("nvmlInit_v2", "nvmlShutdown", "nvmlSystemGetDriverVersion"),
}
PROGRAM = """
from sana_rt.runtime.backends import onnxruntime_rtx
try:
    onnxruntime_rtx.device()
except Exception as error:
    print(type(error).__name__, error)
"""


def loaded(folder: Path) -> str:
    """What is said when the plug-in's library is loaded with the libraries in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(not HAS_PLUGIN, reason='needs pip install "sana-rt[plugin]"')
def test_the_library_loads_and_finds_no_card(tmp_path: Path) -> None:
    for library, symbols in STUBS.items():
        functions = "".join(f"int {name}(void) {{ return 100; }}\n" for name in symbols)
        (tmp_path / "stub.c").write_text(
            functions + "const char *nvmlErrorString(int e) {return 0;}"
        )
        command = ["cc", "-shared", "-fPIC", "-o", tmp_path / library, tmp_path / "stub.c"]
        subprocess.run(command, check=True)
    assert "BackendError NVIDIA's plug-in for ONNX Runtime finds no card" in loaded(tmp_path)


@pytest.mark.skipif(not HAS_PLUGIN, reason='needs pip install "sana-rt[plugin]"')
def test_without_a_driver_the_library_does_not_load(tmp_path: Path) -> None:
    text = loaded(tmp_path)
    assert text.startswith("BackendError")
    assert "libcuda.so.1" in text
    assert "install NVIDIA's driver" in text
