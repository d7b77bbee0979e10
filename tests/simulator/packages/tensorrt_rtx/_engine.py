"""Plans become engines: the graph that a plan was built from, and memory for its weights."""

from __future__ import annotations

import functools
import hashlib
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.simulator.simulated_cuda import device

from sana_rt.bundle import Bundle
from sana_rt.manifest import MANIFEST_NAME, Plan
from sana_rt.runtime.backends.base import Artifact
from tensorrt_rtx import _environment
from tensorrt_rtx._config import IRuntimeConfig
from tensorrt_rtx._context import IExecutionContext
from tensorrt_rtx._enumerations import (
    DataType,
    EngineValidity,
    ExecutionContextAllocationStrategy,
    TensorIOMode,
    TensorLocation,
)
from tensorrt_rtx._values import Dims, ILogger, Severity

_DTYPES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "bfloat16": DataType.BF16,
    "int32": DataType.INT32,
    "int64": DataType.INT64,
    "uint8": DataType.UINT8,
    "bool": DataType.BOOL,
}


@dataclass(frozen=True)
class Source:
    """The graph that a plan was built from."""

    artifact: Artifact
    plan: Plan
    log: Path  # of its build


def find(digest: str) -> Source | None:
    """What the plan with this SHA-256 was built from, if a known bundle lists it."""
    for root in _environment.known_bundles():
        changed = (root / MANIFEST_NAME).stat().st_mtime_ns
        if digest in (sources := _sources(root, changed)):
            return sources[digest]
    return None


@functools.cache
def _sources(root: Path, _changed: int) -> dict[str, Source]:
    """What the plans of a bundle were built from, by their SHA-256."""
    bundle = Bundle.open(root)
    files = {file.path: file.sha256 for file in bundle.manifest.files}
    return {
        files[plan.path]: Source(
            Artifact(name, graph, bundle.path(graph.path)), plan, bundle.path(plan.log)
        )
        for variant in bundle.manifest.variants.values()
        for plans in variant.plans.values()
        for name, plan in plans.items()
        for graph in [variant.graphs[name]]
    }


class Runtime:
    """Makes engines of plans."""

    def __init__(self, logger: ILogger) -> None:
        if not isinstance(logger, ILogger):
            raise TypeError("a Runtime needs an ILogger")
        self.logger = logger
        self.defer_weights_loading = False

    @property
    def engine_header_size(self) -> int:
        return 64

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        mask = _environment.invalid(bytes(buffer[:64]))
        return (EngineValidity.INVALID if mask else EngineValidity.VALID), mask

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        data = bytes(serialized_engine)
        if not device.has_context:
            device.violation("deserialize_cuda_engine without a current CUDA context")
            return None
        if mask := _environment.invalid(data[:64]):
            return self._refuse(f"the engine is not valid here (reasons {mask})")
        source = find(hashlib.sha256(data).hexdigest())
        if source is None:
            return self._refuse("no known bundle lists this plan, or its bytes were changed")
        engine = ICudaEngine(self, source, deferred=self.defer_weights_loading)
        if not self.defer_weights_loading and not engine._load():
            return None
        return engine

    def _refuse(self, why: str) -> None:
        self.logger.log(Severity.ERROR, f"IRuntime::deserializeCudaEngine: {why}")


class ICudaEngine:
    """A plan whose weights are on the device."""

    def __init__(self, runtime: Runtime, source: Source, *, deferred: bool) -> None:
        self._runtime, self._source, self._deferred = runtime, source, deferred
        self._weights: Any = None
        self._address = 0
        self.name = source.artifact.name
        self._tensors = {spec.name: spec for spec in (*source.plan.inputs, *source.plan.outputs)}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return 1

    @property
    def device_memory_size_v2(self) -> int:
        return self._source.plan.activation_bytes

    @property
    def weights_loaded(self) -> bool:
        return self._weights is not None

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if name not in self._tensors:
            return TensorIOMode.NONE
        inputs = {spec.name for spec in self._source.plan.inputs}
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DTYPES[self._tensors[name].dtype]

    def get_tensor_location(self, name: str) -> TensorLocation:
        assert name in self._tensors
        return TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(-1 if isinstance(dim, str) else dim for dim in self._tensors[name].shape)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(
        self, runtime_config: IRuntimeConfig | ExecutionContextAllocationStrategy | None = None
    ) -> IExecutionContext | None:
        if not device.has_context:
            device.violation("create_execution_context without a current CUDA context")
            return None
        config = runtime_config
        if not isinstance(config, IRuntimeConfig):
            config = IRuntimeConfig()
            config.set_execution_context_allocation_strategy(runtime_config or 0)
        context = IExecutionContext(self, config)
        return context if context._allocate() else None

    def load_weights(self, blob: bytes) -> bool:
        known = hashlib.sha256(bytes(blob)).hexdigest()
        source = find(known)
        if not self._deferred or self.weights_loaded or source != self._source:
            self._log("these weights cannot be loaded")
            return False
        return self._load()

    def unload_weights(self) -> bool:
        if not self._deferred or not self.weights_loaded:
            self._log("there are no weights to unload")
            return False
        if device.is_used(self._address):
            device.violation(f"weights are unloaded while {self.name} runs")
        self._weights()
        self._weights = None
        return True

    def _load(self) -> bool:
        nbytes = max(self._source.plan.weight_bytes, 256)
        address = device.allocate(nbytes, f"TensorRT, weights of {self.name}")
        if address is None:
            self._log(f"OutOfMemory: {nbytes} bytes for weights could not be allocated")
            return False
        self._address = address
        self._weights = weakref.finalize(self, device.free, address)
        return True

    def _log(self, text: str) -> None:
        self._runtime.logger.log(Severity.ERROR, f"{self.name}: {text}")
