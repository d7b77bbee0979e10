"""Memory of an NVIDIA GPU through the driver's API. Not run on hardware yet."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any, Final

from cuda.bindings import driver as cuda

from sana_rt.errors import BackendError, DeviceMemoryError
from sana_rt.runtime.backends.buffers import Buffer, HostArray, Memory

_ZEROS: Final = 0


class CudaMemory(Memory):
    """Memory of the first GPU, and the stream on which copies and graphs take their turns."""

    def __init__(self) -> None:
        super().__init__()
        self._device = _Device()
        (stream,) = self._device.call(cuda.cuStreamCreate, cuda.CUstream_flags.CU_STREAM_DEFAULT)
        self.stream = int(stream)
        self._destroy = weakref.finalize(
            self, self._device.release, cuda.cuStreamDestroy, self.stream
        )

    def close(self) -> None:
        """Destroy the stream."""
        self._destroy()

    def free_bytes(self) -> int | None:
        """What the driver calls free."""
        free, _ = self._device.call(cuda.cuMemGetInfo)
        return int(free)

    def synchronize(self) -> None:
        """Wait until the stream is idle."""
        self._device.call(cuda.cuStreamSynchronize, self.stream)

    def clear(self, buffer: Buffer) -> None:
        """Fill a buffer with zeros."""
        self._clear(buffer.address, buffer.nbytes)

    def _allocate(self, nbytes: int) -> tuple[int, object]:
        allocation = _Allocation(self._device, max(nbytes, 1))
        self._clear(allocation.address, nbytes)
        return allocation.address, allocation

    def _clear(self, address: int, nbytes: int) -> None:
        self._device.call(cuda.cuMemsetD8Async, address, _ZEROS, nbytes, self.stream)

    def _upload(self, destination: Buffer, host: HostArray) -> None:
        self._transfer(destination.address, host.ctypes.data, destination.nbytes)
        self.synchronize()  # the host array may be gone when this returns

    def _fill(self, destination: Buffer, host: HostArray) -> None:
        """Copy through pinned memory, which waits for nothing but the fill before this one."""
        allocation = destination.owner
        assert isinstance(allocation, _Allocation)
        staging = allocation.staging()
        staging.wait()
        source = staging.address + destination.address - allocation.address
        ctypes.memmove(source, host.ctypes.data, destination.nbytes)
        self._transfer(destination.address, source, destination.nbytes)
        staging.record(self.stream)

    def _copy(self, destination: Buffer, source: Buffer) -> None:
        self._transfer(destination.address, source.address, destination.nbytes)

    def _download(self, host: HostArray, source: Buffer) -> None:
        self._transfer(host.ctypes.data, source.address, source.nbytes)
        self.synchronize()

    def _transfer(self, destination: int, source: int, nbytes: int) -> None:
        """Copy; the direction follows from the addresses."""
        self._device.call(cuda.cuMemcpyAsync, destination, source, nbytes, self.stream)


class _Device:
    """The first GPU, in the context that other libraries share; usable from any thread."""

    def __init__(self) -> None:
        try:
            _checked(cuda.cuInit(0))
        except RuntimeError as error:  # cuda-python looks for the driver's library now
            raise BackendError(f"NVIDIA's driver is not installed: {error}") from error
        (count,) = _checked(cuda.cuDeviceGetCount())
        if count == 0:
            raise BackendError("CUDA finds no GPU.")
        (device,) = _checked(cuda.cuDeviceGet(0))
        (self._context,) = _checked(cuda.cuDevicePrimaryCtxRetain(device))

    def call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> tuple[Any, ...]:
        """The values of a CUDA call on the device, or the error it reports."""
        _checked(cuda.cuCtxSetCurrent(self._context))
        return _checked(function(*arguments))

    def release(self, function: Callable[..., tuple[Any, ...]], handle: object) -> None:
        """Give a resource back, whatever state the device is in."""
        cuda.cuCtxSetCurrent(self._context)
        function(handle)


class _Allocation:
    """Device memory that is freed when the last buffer in it is gone."""

    def __init__(self, device: _Device, nbytes: int) -> None:
        (address,) = device.call(cuda.cuMemAlloc, nbytes)
        self.address = int(address)
        self._device, self._nbytes = device, nbytes
        self._staging: _Staging | None = None
        weakref.finalize(self, device.release, cuda.cuMemFree, self.address)

    def staging(self) -> _Staging:
        """Host memory of the same size, from the first fill on."""
        if self._staging is None:
            self._staging = _Staging(self._device, self._nbytes)
        return self._staging


class _Staging:
    """Pinned host memory, which the device reads after the call that copies it has returned."""

    def __init__(self, device: _Device, nbytes: int) -> None:
        self._device = device
        (address,) = device.call(cuda.cuMemAllocHost, nbytes)
        self.address = int(address)
        weakref.finalize(self, device.release, cuda.cuMemFreeHost, self.address)
        (self._read,) = device.call(cuda.cuEventCreate, cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        weakref.finalize(self, device.release, cuda.cuEventDestroy, self._read)

    def wait(self) -> None:
        """Return when the last copy has been read; at once if there was none."""
        self._device.call(cuda.cuEventSynchronize, self._read)

    def record(self, stream: int) -> None:
        """The copy that was just enqueued is the one to wait for."""
        self._device.call(cuda.cuEventRecord, self._read, stream)


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of a CUDA call, or the error it reports."""
    status, *values = result
    if status == cuda.CUresult.CUDA_SUCCESS:
        return tuple(values)
    if status == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise DeviceMemoryError(f"The GPU has no memory left ({status.name}).")
    raise BackendError(f"A call of CUDA's driver failed ({status.name}).")
