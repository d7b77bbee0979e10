"""ONNX Runtime: its CPU provider everywhere, its CUDA provider on NVIDIA GPUs.

Both bind our buffers by address. The CUDA provider shares one stream with our copies, so that
work on the device stays in order; it has not been run on hardware yet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_c

from sana_rt import machine
from sana_rt.errors import BackendError, BundleFileError
from sana_rt.manifest import Variant
from sana_rt.runtime.backends.base import (
    DEFAULT_OPTIONS,
    Artifact,
    Backend,
    BackendOptions,
    Binding,
    Candidate,
    Context,
    Offers,
)
from sana_rt.runtime.backends.buffers import Buffer, Memory
from sana_rt.runtime.backends.host import HostMemory
from sana_rt.tensors import TensorSpec

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

#: ``onnx.TensorProto.DataType`` by dtype name.
_ELEMENT_TYPES: Final[Mapping[str, int]] = {
    "float32": 1,
    "uint8": 2,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "bfloat16": 16,
}
ERRORS: Final = (
    ort_c.EPFail,
    ort_c.EngineError,
    ort_c.Fail,
    ort_c.InvalidArgument,
    ort_c.InvalidGraph,
    ort_c.InvalidProtobuf,
    ort_c.NoSuchFile,
    ort_c.NotImplemented,
    ort_c.RuntimeException,
    RuntimeError,  # what runs with bindings raise
)
_CONFIG: Final = {
    # Two dozen sessions, of which one runs: pools that wait must not spin.
    "session.intra_op.allow_spinning": "0",
    # Weights are not activations: closing a session gives theirs back to the system.
    "session.use_device_allocator_for_initializers": "1",
}
_FATAL: Final = 4  # severity of ONNX Runtime's own log; its errors reach us as exceptions
_SAME_AS_REQUESTED: Final = 1  # how the arena grows


class OnnxRuntime(Backend):
    """Graphs as inference sessions of one execution provider."""

    def __init__(
        self,
        name: str,
        memory: Memory,
        provider: tuple[str, dict[str, str]],
        threads: int | None,
    ) -> None:
        super().__init__(name, memory)
        self._provider, self._provider_options = provider
        self._threads = threads or machine.usable_cpus()
        self._arena = _Arena(self._provider)

    def open(self, artifact: Artifact, *, lasting: bool = True) -> Context:
        """Load a graph as an inference session."""
        name = artifact.name
        try:
            session = self._session(artifact, self._options(lasting=lasting))
        except ERRORS as error:
            raise BackendError(
                f"{self.name} cannot load the graph {name!r} from {artifact.path}: {error}"
            ) from error
        session.disable_fallback()
        if session.get_providers()[0] != self._provider:
            raise BackendError(
                f"ONNX Runtime fell back to {session.get_providers()} for the graph {name!r}.",
                expected=self._provider,
                remedy="run `sana-rt doctor` to see what the provider lacks.",
            )
        _check_names(name, "inputs", session.get_inputs(), artifact.entry.inputs)
        _check_names(name, "outputs", session.get_outputs(), artifact.entry.outputs)
        return _SessionContext(artifact, session, self._arena)

    def trim(self) -> None:
        """Let the next run give back what the arena keeps for graphs that are closed."""
        self._arena.trim()

    def _session(self, artifact: Artifact, options: Any) -> Any:
        provider = (self._provider, self._provider_options)
        return ort.InferenceSession(artifact.path, options, providers=[provider])

    def _options(self, *, lasting: bool) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # One block for all activations of a run fits no free piece of a shared arena.
        options.enable_mem_pattern = False
        for name, value in (_CONFIG | self._arena.config).items():
            options.add_session_config_entry(name, value)
        if not lasting:
            options.add_session_config_entry("session.disable_prepacking", "1")
        return options


class _SessionContext(Context):
    def __init__(self, artifact: Artifact, session: Any, arena: _Arena) -> None:
        super().__init__(artifact)
        self._session, self._arena = session, arena

    def _bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Binding:
        io = self._session.io_binding()
        for bind, buffers in ((io.bind_input, inputs), (io.bind_output, outputs)):
            for name, buffer in buffers.items():
                element_type = _ELEMENT_TYPES[buffer.dtype]
                bind(name, self._arena.device, 0, element_type, buffer.shape, buffer.address)
        run = functools.partial(self._arena.run, self._session, io)
        return _SessionBinding(self.name, run, inputs, outputs)


class _SessionBinding(Binding):
    def __init__(
        self,
        graph: str,
        run: Callable[[], None],
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
    ) -> None:
        super().__init__(graph, inputs, outputs)
        self._run = run

    def run(self) -> None:
        try:
            self._run()
        except ERRORS as error:
            raise BackendError(
                f"ONNX Runtime failed in the graph {self.graph!r}: {error}"
            ) from error


def _check_names(
    graph: str, side: str, found: Sequence[Any], listed: tuple[TensorSpec, ...]
) -> None:
    names, wanted = {tensor.name for tensor in found}, {tensor.name for tensor in listed}
    if names != wanted:
        raise BundleFileError(
            f"The file of the graph {graph!r} has the {side} {sorted(names)}.",
            expected=f"{sorted(wanted)}, as the manifest says.",
            remedy="export the checkpoint again.",
        )


def cpu(options: BackendOptions = DEFAULT_OPTIONS) -> OnnxRuntime:
    """The CPU provider."""
    return OnnxRuntime("onnxruntime", HostMemory(), (CPU, {}), options.threads)


def cuda_options(stream: int) -> dict[str, str]:
    """What the CUDA provider is told: the first GPU and our stream."""
    return {"device_id": "0", "user_compute_stream": str(stream), "use_tf32": "0"}


def cuda(options: BackendOptions = DEFAULT_OPTIONS) -> OnnxRuntime:
    """The CUDA provider on the first GPU; float32 stays float32 (no TF32)."""
    if CUDA not in ort.get_available_providers():
        raise BackendError(
            f"this build of ONNX Runtime has only {ort.get_available_providers()}.",
            expected=CUDA,
            remedy="pip uninstall onnxruntime, then pip install onnxruntime-gpu cuda-python.",
        )
    from sana_rt.runtime.backends.cuda import CudaMemory  # noqa: PLC0415 (an optional dependency)

    memory = CudaMemory(options.timeout)
    provider = CUDA, cuda_options(memory.stream)
    try:
        return OnnxRuntime("onnxruntime-cuda", memory, provider, options.threads)
    except BackendError:
        memory.close()
        raise


def offers(variants: Mapping[str, Variant], *dtypes: str, tensorrt: bool = False) -> Offers:
    """Graphs in ``dtypes``, the preferred one first; ``tensorrt`` has operators of its own."""
    refusals = {
        name: reason
        for name, variant in variants.items()
        if (reason := _refusal(variant, dtypes, tensorrt=tensorrt)) is not None
    }
    playable = [name for name in variants if name not in refusals]
    playable.sort(key=lambda name: dtypes.index(variants[name].dtype))  # stable
    return Offers(tuple(playable), refusals)


def _refusal(variant: Variant, dtypes: tuple[str, ...], *, tensorrt: bool) -> str | None:
    device = variant.quantization is not None and variant.quantization.form == "device"
    if device and not tensorrt:
        return "it is quantized in operators that only TensorRT has"
    if variant.dtype not in dtypes:
        return f"it is in {variant.dtype}, and ONNX Runtime plays {' and '.join(dtypes)} only here"
    return None


#: float32 alone: the CPU provider has no kernels for bfloat16.
CPU_CANDIDATE: Final = Candidate(lambda variants: offers(variants, "float32"), cpu)
CUDA_CANDIDATE: Final = Candidate(lambda variants: offers(variants, "bfloat16", "float32"), cuda)


class _Arena:
    """One arena for all sessions: they run one after another, so their activations can share.

    A plug-in's sessions have none of ours: it allocates for each run from a pool of its own.
    """

    def __init__(self, provider: str) -> None:
        ours = provider in (CPU, CUDA)
        self.device = "cpu" if provider == CPU else "cuda"
        self.config = {"session.use_env_allocators": "1" if ours else "0"}
        self._place = "cpu:0" if provider == CPU else "gpu:0"  # in the options of a run
        self._trims = False
        if ours:
            _share(provider)

    def trim(self) -> None:
        """Let the next run give back what is free in it."""
        self._trims = True

    def run(self, session: Any, io: Any) -> None:
        """Run a session on its buffers."""
        if not self._trims:
            session.run_with_iobinding(io)
            return
        options = ort.RunOptions()
        options.log_severity_level = _FATAL
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", self._place)
        session.run_with_iobinding(io, options)
        self._trims = False


@functools.cache
def _share(provider: str) -> None:
    """Register the arena, which stays as long as the process."""
    place = "Cuda" if provider == CUDA else "Cpu"
    info = ort_c.OrtMemoryInfo(
        place, ort_c.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort_c.OrtMemType.DEFAULT
    )
    arena = ort_c.OrtArenaCfg({"arena_extend_strategy": _SAME_AS_REQUESTED})
    try:
        ort_c.create_and_register_allocator_v2(provider, info, {}, arena)
    except ERRORS as error:
        raise BackendError(f"ONNX Runtime has no arena for the {provider}: {error}") from error
