# ruff: noqa: N802, N815 (the stand-in's names are CUDA's)
"""GPU memory through cuda-python, with the driver's calls played by host memory.

It shows that the right calls are made in the right order; no GPU has run them.
"""

from __future__ import annotations

import ctypes
import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sana_rt.errors import BackendError, DeviceMemoryError

runtime = pytest.importorskip("cuda.bindings.runtime")

from sana_rt.runtime.backends import cuda  # noqa: E402 - only with cuda-python

OK = runtime.cudaError_t.cudaSuccess
TOTAL_BYTES = 1 << 20
STREAM = 77


class Driver:
    """The calls that are used, with the names and the form of results of the real module."""

    cudaMemcpyKind = runtime.cudaMemcpyKind
    cudaError_t = runtime.cudaError_t
    cudaGetErrorString = staticmethod(runtime.cudaGetErrorString)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.synchronized = 0

    def cudaGetDeviceCount(self) -> tuple[Any, int]:
        return OK, 1

    def cudaSetDevice(self, _: int) -> tuple[Any]:
        return (OK,)

    def cudaStreamCreate(self) -> tuple[Any, int]:
        return OK, STREAM

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        assert stream == STREAM
        self.synchronized += 1
        return (OK,)

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return OK, TOTAL_BYTES - sum(map(len, self.memory.values())), TOTAL_BYTES

    def cudaMalloc(self, size: int) -> tuple[Any, int | None]:
        if size > TOTAL_BYTES:
            return runtime.cudaError_t.cudaErrorMemoryAllocation, None
        block = (ctypes.c_ubyte * size)(*[0xFF] * size)
        self.memory[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[Any]:
        del self.memory[address]
        return (OK,)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[Any]:
        assert stream == STREAM
        ctypes.memset(address, value, size)
        return (OK,)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: Any, stream: int
    ) -> tuple[Any]:
        assert (kind, stream) == (runtime.cudaMemcpyKind.cudaMemcpyDefault, STREAM)
        ctypes.memmove(to, source, size)
        return (OK,)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(cuda, "cuda", driver)
    return driver


def test_every_call_is_one_of_cuda_python() -> None:
    calls = [name for name in vars(Driver) if name.startswith("cuda")]
    assert len(calls) > 10
    assert all(hasattr(runtime, name) for name in calls)


def test_tensors_go_there_and_back(driver: Driver) -> None:
    memory = cuda.CudaMemory()
    first, second = (memory.allocate("float32", (4, 3)) for _ in range(2))
    assert not memory.download(first).any()
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    memory.upload(first, values)
    memory.copy(second[1:3], first[2:4])
    memory.clear(second[2:3])
    np.testing.assert_array_equal(
        memory.download(second), [[0, 0, 0], [6, 7, 8], [0, 0, 0], [0, 0, 0]]
    )
    assert driver.synchronized == 3, "host arrays are safe to free after an upload or download"
    assert memory.allocations == 2
    assert memory.free_bytes() == TOTAL_BYTES - 2 * 48


def test_memory_is_freed_with_the_last_buffer_in_it(driver: Driver) -> None:
    memory = cuda.CudaMemory()
    whole = memory.allocate("uint8", (10,))
    part = whole[2:4]
    del whole
    gc.collect()
    assert driver.memory
    del part
    gc.collect()
    assert not driver.memory


def test_errors_of_the_driver_are_typed(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = cuda.CudaMemory()
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        memory.allocate("uint8", (TOTAL_BYTES + 1,))
    refused = SimpleNamespace(**{name: getattr(driver, name) for name in dir(driver)})
    refused.cudaGetDeviceCount = lambda: (
        runtime.cudaError_t.cudaErrorInsufficientDriver,
        None,
    )
    monkeypatch.setattr(cuda, "cuda", refused)
    with pytest.raises(BackendError, match="cudaErrorInsufficientDriver"):
        cuda.CudaMemory()
    refused.cudaGetDeviceCount = lambda: (OK, 0)
    with pytest.raises(BackendError, match="finds no GPU"):
        cuda.CudaMemory()
