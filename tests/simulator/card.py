"""What tests say to CUDA's driver, short."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
from cuda.bindings import driver
from cuda.bindings.driver import CUresult, CUstream_flags, CUstreamCaptureMode

NON_BLOCKING = CUstream_flags.CU_STREAM_NON_BLOCKING
THREAD_LOCAL = CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
GLOBAL = CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
RELAXED = CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED


def ok(result: tuple[Any, ...]) -> Any:
    """The value of a call that succeeds."""
    status, *values = result
    assert status == CUresult.CUDA_SUCCESS, status
    return values[0] if len(values) == 1 else tuple(values)


class Card:
    """The primary context, current in this thread, and a stream."""

    def __init__(self) -> None:
        ok(driver.cuInit(0))
        self.device = ok(driver.cuDeviceGet(0))
        self.context = ok(driver.cuDevicePrimaryCtxRetain(self.device))
        ok(driver.cuCtxSetCurrent(self.context))
        self._freed_by: list[tuple[Any, Any]] = []
        self.stream = self.new_stream()

    @functools.cached_property
    def some(self) -> Any:
        """64 bytes of device memory."""
        return self.memory()

    def close(self) -> None:
        """Give everything back."""
        driver.cuCtxSynchronize()
        for function, handle in reversed(self._freed_by):
            function(handle)
        driver.cuDevicePrimaryCtxRelease(self.device)

    def _kept(self, function: Any, handle: Any) -> Any:
        self._freed_by.append((function, handle))
        return handle

    def forget(self, handle: Any) -> None:
        """It has been given back already, or must not be."""
        self._freed_by = [each for each in self._freed_by if each[1] is not handle]

    def new_stream(self, flags: int = NON_BLOCKING) -> Any:
        return self._kept(driver.cuStreamDestroy, ok(driver.cuStreamCreate(flags)))

    def event(self, flags: int = 2) -> Any:
        return self._kept(driver.cuEventDestroy, ok(driver.cuEventCreate(flags)))

    def memory(self, nbytes: int = 64) -> Any:
        return self._kept(driver.cuMemFree, ok(driver.cuMemAlloc(nbytes)))

    def pinned(self, nbytes: int = 64) -> int:
        address = ok(driver.cuMemAllocHost(nbytes))
        return int(self._kept(driver.cuMemFreeHost, address))

    def clear(self, address: Any, value: int, stream: Any = None, nbytes: int = 64) -> Any:
        return driver.cuMemsetD8Async(address, value, nbytes, stream or self.stream)

    def copy(self, to: Any, source: Any, nbytes: int = 64, stream: Any = None) -> Any:
        return driver.cuMemcpyAsync(to, source, nbytes, stream or self.stream)

    def read(self, address: Any, nbytes: int = 64) -> np.ndarray:
        """The bytes at an address when the stream has come to it."""
        host = np.zeros(nbytes, np.uint8)
        ok(driver.cuMemcpyAsync(host.ctypes.data, address, nbytes, self.stream))
        return host

    def begin(self, mode: CUstreamCaptureMode = THREAD_LOCAL, stream: Any = None) -> None:
        ok(driver.cuStreamBeginCapture(stream or self.stream, mode))

    def end(self) -> tuple[Any, Any]:
        """The result of ending the capture, and the graph."""
        result, graph = driver.cuStreamEndCapture(self.stream)
        if result == CUresult.CUDA_SUCCESS:
            self._kept(driver.cuGraphDestroy, graph)
        return result, graph

    def graph(self) -> Any:
        """What was captured, ready to launch."""
        result, graph = self.end()
        assert result == CUresult.CUDA_SUCCESS
        return self._kept(driver.cuGraphExecDestroy, ok(driver.cuGraphInstantiate(graph, 0)))

    def launch(self, graph: Any, stream: Any = None) -> Any:
        return driver.cuGraphLaunch(graph, stream or self.stream)


def fill(address: int, value: int, nbytes: int = 64) -> None:
    """Let the host write bytes."""
    ctypes.memset(address, value, nbytes)


def peek(address: int, nbytes: int = 64) -> np.ndarray:
    """What the host sees now."""
    return np.frombuffer(ctypes.string_at(address, nbytes), np.uint8)
