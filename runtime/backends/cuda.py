"""Memory of an NVIDIA GPU through cuda-python. Not run on hardware yet."""

from __future__ import annotations

import weakref
from typing import Any, Final

from cuda.bindings import runtime as cuda

from sana_rt.errors import BackendError, DeviceMemoryError
from sana_rt.runtime.backends.buffers import Buffer, HostArray, Memory

_COPY: Final = cuda.cudaMemcpyKind.cudaMemcpyDefault  # the direction follows from the addresses


class CudaMemory(Memory):
    """Memory of the first GPU, and the stream on which copies and graphs take their turns."""

    def __init__(self) -> None:
        super().__init__()
        (count,) = _checked(cuda.cudaGetDeviceCount())
        if count == 0:
            raise BackendError("CUDA finds no GPU.")
        _checked(cuda.cudaSetDevice(0))
        (stream,) = _checked(cuda.cudaStreamCreate())
        self.stream = int(stream)

    def free_bytes(self) -> int | None:
        """What the driver calls free."""
        free, _ = _checked(cuda.cudaMemGetInfo())
        return int(free)

    def synchronize(self) -> None:
        """Wait until the stream is idle."""
        _checked(cuda.cudaStreamSynchronize(self.stream))

    def clear(self, buffer: Buffer) -> None:
        """Fill a buffer with zeros."""
        _checked(cuda.cudaMemsetAsync(buffer.address, 0, buffer.nbytes, self.stream))

    def _allocate(self, nbytes: int) -> tuple[int, object]:
        (address,) = _checked(cuda.cudaMalloc(max(nbytes, 1)))
        _checked(cuda.cudaMemsetAsync(address, 0, nbytes, self.stream))
        return int(address), _Allocation(int(address))

    def _upload(self, destination: Buffer, host: HostArray) -> None:
        self._transfer(destination.address, host.ctypes.data, destination.nbytes)
        self.synchronize()  # the host array may be gone when this returns

    def _copy(self, destination: Buffer, source: Buffer) -> None:
        self._transfer(destination.address, source.address, destination.nbytes)

    def _download(self, host: HostArray, source: Buffer) -> None:
        self._transfer(host.ctypes.data, source.address, source.nbytes)
        self.synchronize()

    def _transfer(self, destination: int, source: int, nbytes: int) -> None:
        _checked(cuda.cudaMemcpyAsync(destination, source, nbytes, _COPY, self.stream))


class _Allocation:
    """Frees its memory when the last buffer in it is gone."""

    def __init__(self, address: int) -> None:
        weakref.finalize(self, cuda.cudaFree, address)


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of a CUDA call, or the error it reports."""
    status, *values = result
    if status == cuda.cudaError_t.cudaSuccess:
        return tuple(values)
    message = cuda.cudaGetErrorString(status)[1].decode()
    if status == cuda.cudaError_t.cudaErrorMemoryAllocation:
        raise DeviceMemoryError(f"The GPU has no memory left: {message}.")
    raise BackendError(f"{message} ({status.name}).")
