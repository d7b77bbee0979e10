"""How contexts are made, and what was compiled for them."""

from __future__ import annotations

import json
from typing import Final

from tests.simulator.simulated_cuda import device

from tensorrt_rtx import _environment
from tensorrt_rtx._enumerations import (
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
)
from tensorrt_rtx._values import IHostMemory

_MAGIC: Final = b"simulated runtime cache\n"


class IRuntimeCache:
    """Kernels that were compiled, by what they were compiled from."""

    def __init__(self) -> None:
        self._kernels: set[str] = set()

    def serialize(self) -> IHostMemory:
        content = {**_environment.describe(), "kernels": sorted(self._kernels)}
        return IHostMemory(_MAGIC + json.dumps(content).encode())

    def deserialize(self, blob: bytes) -> bool:
        if not device.has_context:
            device.violation("IRuntimeCache.deserialize without a current CUDA context")
            return False
        data = bytes(blob)
        try:
            content = json.loads(data.removeprefix(_MAGIC)) if data.startswith(_MAGIC) else {}
            kernels = content.pop("kernels")
        except (ValueError, KeyError):
            return False
        if content != _environment.describe():
            return False
        self._kernels.update(kernels)
        return True

    def reset(self) -> bool:
        self._kernels.clear()
        return True


class IRuntimeConfig:
    """Settings of contexts; their values when a context is made count."""

    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self._allocation = ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(
        self,
        strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC,
    ) -> None:
        self._allocation = ExecutionContextAllocationStrategy(strategy)

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self._allocation

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self._cache
