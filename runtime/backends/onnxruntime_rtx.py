"""NVIDIA's plug-in for ONNX Runtime: TensorRT-RTX compiles graphs when they are loaded.

The second road to an RTX card: no plans are built, and graphs in TensorRT's operators (NVFP4)
are played as they are. Not run on hardware yet.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import onnxruntime as ort

from sana_rt.errors import BackendError, MissingDependencyError
from sana_rt.manifest import Variant
from sana_rt.runtime.backends.base import Artifact, BackendOptions, Candidate, Offers
from sana_rt.runtime.backends.onnxruntime import ERRORS, OnnxRuntime, offers
from sana_rt.tensors import resolve

PROVIDER: Final = "NvTensorRTRTXExecutionProvider"
_INSTALL: Final = 'pip install "sana-rt[plugin]"'
_REGISTRATION: Final = "sana-rt"  # ONNX Runtime's name for the library; ours to choose
_ENDS: Final[tuple[Literal["min", "opt", "max"], ...]] = ("min", "opt", "max")


class OnnxRuntimeRtx(OnnxRuntime):
    """Graphs as sessions of the plug-in, each compiled for the sizes of the clip."""

    specializes = True

    def __init__(self, options: BackendOptions) -> None:
        from sana_rt.runtime.backends.cuda import CudaMemory  # noqa: PLC0415 (optional)

        memory = CudaMemory(options.timeout)
        try:
            self._device = device()
        except BackendError:
            memory.close()
            raise
        super().__init__("onnxruntime-rtx", memory, (PROVIDER, {}), options.threads)
        self._stream = memory.stream
        self._cache = cache_folder(memory.device.card)

    def _session(self, artifact: Artifact, options: Any) -> Any:
        # What TensorRT does not take would be copied to the host and back, in silence.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        given = provider_options(artifact, self._stream, self._cache)
        options.add_provider_for_devices([self._device], given)
        return ort.InferenceSession(artifact.path, options)


def provider_options(artifact: Artifact, stream: int, cache: Path) -> dict[str, str]:
    """What the plug-in is told: our stream, the sizes, and where compiled kernels are kept.

    It captures no CUDA graphs of its own: those would hold the addresses of the first run.
    """
    shapes = {f"nv_profile_{end}_shapes": profile_shapes(artifact, end) for end in _ENDS}
    return {
        "has_user_compute_stream": "1",
        "user_compute_stream": str(stream),
        "enable_cuda_graph": "0",
        "nv_runtime_cache_path": str(cache),
        **{name: text for name, text in shapes.items() if text},
    }


def profile_shapes(artifact: Artifact, end: Literal["min", "opt", "max"]) -> str:
    """``input:2x16x21,other:1x300``: the inputs whose shapes have named dimensions."""
    dims = {name: getattr(size, end) for name, size in artifact.sizes.items()}
    return ",".join(
        f"{spec.name}:{'x'.join(map(str, resolve(spec.shape, dims)))}"
        for spec in artifact.entry.inputs
        if any(isinstance(dim, str) for dim in spec.shape)
    )


def device() -> Any:
    """The first card that the plug-in can use.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it does not load, or finds no card.
    """
    _register()
    found = [each for each in ort.get_ep_devices() if each.ep_name == PROVIDER]
    if not found:
        raise BackendError(
            "NVIDIA's plug-in for ONNX Runtime finds no card that it can use.",
            expected="compute capability 8.6, 8.9 or 12.0 and later, and a driver for CUDA 13.",
            remedy="`sana-rt doctor` shows the card and its driver.",
        )
    return found[0]


def cache_folder(card: Any) -> Path:
    """Where the plug-in keeps what it compiled for ``card``."""
    from sana_rt.runtime.backends import runtime_cache  # noqa: PLC0415 (optional)

    return runtime_cache.folder_of("onnxruntime", _plugin().__version__, card)


@functools.cache
def _register() -> None:
    """Load the plug-in into ONNX Runtime, once a process."""
    library = _plugin().get_library_path()
    try:
        ort.register_execution_provider_library(_REGISTRATION, library)
    except ERRORS as error:
        raise BackendError(
            f"ONNX Runtime {ort.__version__} cannot load NVIDIA's plug-in: {error}",
            remedy="install NVIDIA's driver; if it is there, " + _INSTALL,
        ) from error


def _plugin() -> Any:
    """The package of the plug-in; importing it loads TensorRT-RTX."""
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise MissingDependencyError(
            f"NVIDIA's plug-in for ONNX Runtime cannot be imported: {error}.", remedy=_INSTALL
        ) from error
    return plugin


def _offers(variants: Mapping[str, Variant]) -> Offers:
    return offers(variants, "bfloat16", "float32", tensorrt=True)


CANDIDATE: Final = Candidate(_offers, OnnxRuntimeRtx)
