# ruff: noqa: N802 (the stand-in's names are CUDA's)
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

driver_api = pytest.importorskip("cuda.bindings.driver")

from sana_rt.runtime.backends import cuda  # noqa: E402 - only with cuda-python

OK = driver_api.CUresult.CUDA_SUCCESS
TOTAL_BYTES = 1 << 20
STREAM = 77
CONTEXT = 55


class Driver:
    """The calls that are used, with the names and the form of results of the real module."""

    CUresult = driver_api.CUresult
    CUstream_flags = driver_api.CUstream_flags
    CUevent_flags = driver_api.CUevent_flags

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.events: dict[int, int] = {}  # how often each was recorded
        self.streams = {STREAM}
        self.calls: list[str] = []

    @property
    def synchronized(self) -> int:
        return self.calls.count("cuStreamSynchronize")

    def cuInit(self, _: int) -> tuple[Any]:
        return (OK,)

    def cuDeviceGetCount(self) -> tuple[Any, int]:
        return OK, 1

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, int]:
        return OK, ordinal

    def cuDevicePrimaryCtxRetain(self, _: int) -> tuple[Any, int]:
        return OK, CONTEXT

    def cuCtxSetCurrent(self, context: int) -> tuple[Any]:
        assert context == CONTEXT
        return (OK,)

    def cuStreamCreate(self, _: int) -> tuple[Any, int]:
        return OK, STREAM

    def cuStreamDestroy(self, stream: int) -> tuple[Any]:
        self.streams.remove(stream)
        return (OK,)

    def cuStreamSynchronize(self, stream: int) -> tuple[Any]:
        assert stream == STREAM
        self.calls.append("cuStreamSynchronize")
        return (OK,)

    def cuMemGetInfo(self) -> tuple[Any, int, int]:
        return OK, TOTAL_BYTES - sum(map(len, self.memory.values())), TOTAL_BYTES

    def cuMemAlloc(self, size: int) -> tuple[Any, int | None]:
        if size > TOTAL_BYTES:
            return driver_api.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        return OK, self._block(self.memory, size)

    def cuMemFree(self, address: int) -> tuple[Any]:
        del self.memory[address]
        return (OK,)

    def cuMemAllocHost(self, size: int) -> tuple[Any, int]:
        return OK, self._block(self.pinned, size)

    def cuMemFreeHost(self, address: int) -> tuple[Any]:
        del self.pinned[address]
        return (OK,)

    def cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> tuple[Any]:
        assert stream == STREAM
        ctypes.memset(address, value, size)
        return (OK,)

    def cuMemcpyAsync(self, to: int, source: int, size: int, stream: int) -> tuple[Any]:
        assert stream == STREAM
        self.calls.append("cuMemcpyAsync")
        ctypes.memmove(to, source, size)
        return (OK,)

    def cuEventCreate(self, _: int) -> tuple[Any, int]:
        self.events[len(self.events)] = 0
        return OK, len(self.events) - 1

    def cuEventRecord(self, event: int, stream: int) -> tuple[Any]:
        assert stream == STREAM
        self.events[event] += 1
        self.calls.append("cuEventRecord")
        return (OK,)

    def cuEventSynchronize(self, event: int) -> tuple[Any]:
        assert event in self.events
        self.calls.append("cuEventSynchronize")
        return (OK,)

    def cuEventDestroy(self, event: int) -> tuple[Any]:
        del self.events[event]
        return (OK,)

    @staticmethod
    def _block(blocks: dict[int, Any], size: int) -> int:
        block = (ctypes.c_ubyte * size)(*[0xFF] * size)
        blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(cuda, "cuda", driver)
    return driver


def test_every_call_is_one_of_cuda_python() -> None:
    calls = [name for name in vars(Driver) if name.startswith("cu")]
    assert len(calls) > 15
    assert all(hasattr(driver_api, name) for name in calls)


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


def test_what_is_filled_waits_for_the_fill_before_it_and_for_nothing_else(driver: Driver) -> None:
    """Pinned memory of the allocation's size is kept, so that a part can be filled as well."""
    memory = cuda.CudaMemory()
    whole = memory.allocate("bfloat16", (2, 3))
    for value in (1.0, 2.0):
        memory.fill(whole, np.full((2, 3), value, np.float32))
    memory.fill(whole[1:2], np.full((1, 3), 3.0, np.float32))
    fill = ["cuEventSynchronize", "cuMemcpyAsync", "cuEventRecord"]
    assert driver.calls == 3 * fill
    assert [len(block) for block in driver.pinned.values()] == [whole.nbytes]
    assert driver.events == {0: 3}
    np.testing.assert_array_equal(memory.download(whole), [[2, 2, 2], [3, 3, 3]])
    del whole
    gc.collect()
    assert not driver.pinned
    assert not driver.events


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


def test_closing_destroys_the_stream_once(driver: Driver) -> None:
    memory = cuda.CudaMemory()
    memory.close()
    memory.close()
    assert not driver.streams


def test_errors_of_the_driver_are_typed(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = cuda.CudaMemory()
    with pytest.raises(DeviceMemoryError, match="OUT_OF_MEMORY"):
        memory.allocate("uint8", (TOTAL_BYTES + 1,))
    refused = SimpleNamespace(**{name: getattr(driver, name) for name in dir(driver)})
    refused.cuInit = lambda _: (driver_api.CUresult.CUDA_ERROR_NO_DEVICE,)
    monkeypatch.setattr(cuda, "cuda", refused)
    with pytest.raises(BackendError, match="CUDA_ERROR_NO_DEVICE"):
        cuda.CudaMemory()
    refused.cuInit = driver.cuInit
    refused.cuDeviceGetCount = lambda: (OK, 0)
    with pytest.raises(BackendError, match="finds no GPU"):
        cuda.CudaMemory()


def test_a_missing_driver_is_named(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: int) -> tuple[Any]:
        raise RuntimeError("libcuda.so.1 is not found")

    monkeypatch.setattr(driver, "cuInit", missing)
    with pytest.raises(BackendError, match=r"driver is not installed: libcuda"):
        cuda.CudaMemory()
