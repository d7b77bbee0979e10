"""Memory of an NVIDIA GPU, copies on its stream, and times. Not run on hardware yet."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from typing import Any, Final

from cuda.bindings import driver as cuda

from sana_rt.runtime.backends.buffers import Buffer, HostArray, Memory, Timer
from sana_rt.runtime.backends.cuda_device import DEFAULT_TIMEOUT, Device

_ZEROS: Final = 0


class CudaMemory(Memory):
    """Memory of the first GPU; copies take their turns with the graphs on the device's stream."""

    staged = True

    def __init__(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        super().__init__()
        self.device = Device(timeout)
        weakref.finalize(self, self.device.close)  # with what is kept until then

    @property
    def stream(self) -> int:
        """The stream, for libraries that work on it."""
        return self.device.stream

    def begin(self, moment: str) -> None:
        """Say what comes now, for messages."""
        self.device.moment = moment

    def close(self) -> None:
        """Give back all memory, the stream and the context."""
        self.device.close()

    def timer(self) -> Timer:
        """A timer whose marks lie on the stream."""
        return EventTimer(self.device)

    def free_bytes(self) -> int | None:
        """What the driver calls free."""
        free, _ = self.device.memory_info()
        return free

    def clear(self, buffer: Buffer) -> None:
        """Fill a buffer with zeros."""
        self._clear(buffer.address, buffer.nbytes)

    def _allocate(self, nbytes: int) -> tuple[int, object]:
        allocation = _Allocation(self.device, max(nbytes, 1))
        self._clear(allocation.address, max(nbytes, 1))
        return allocation.address, allocation

    def _clear(self, address: int, nbytes: int) -> None:
        self.device.call(cuda.cuMemsetD8Async, address, _ZEROS, nbytes, self.stream)

    def _upload(self, destination: Buffer, host: HostArray) -> None:
        self._transfer_now(destination.address, host.ctypes.data, destination.nbytes)

    def _fill(self, destination: Buffer, host: HostArray) -> None:
        """Copy through pinned memory, which waits for nothing but the fill before this one.

        A step fills what the step before it has filled, so that the host is never more than one
        step ahead of the device.
        """
        allocation = destination.owner
        assert isinstance(allocation, _Allocation)
        staging = allocation.staging()
        staging.wait()
        source = staging.address + destination.address - allocation.address
        ctypes.memmove(source, host.ctypes.data, destination.nbytes)
        self._transfer(destination.address, source, destination.nbytes)
        staging.record()

    def _copy(self, destination: Buffer, source: Buffer) -> None:
        self._transfer(destination.address, source.address, destination.nbytes)

    def _download(self, host: HostArray, source: Buffer) -> None:
        self._transfer_now(host.ctypes.data, source.address, source.nbytes)

    def _transfer(self, destination: int, source: int, nbytes: int) -> None:
        """Copy; the direction follows from the addresses."""
        self.device.call(cuda.cuMemcpyAsync, destination, source, nbytes, self.stream)

    def _transfer_now(self, destination: int, source: int, nbytes: int) -> None:
        """Copy from or to ordinary host memory, which may be gone when this returns.

        The driver makes such a copy wait inside the call, where a wait cannot give up. So the
        stream is idle before.
        """
        self.device.synchronize()
        self._transfer(destination, source, nbytes)
        self.device.synchronize()


class EventTimer(Timer):
    """Marks are events on the stream: one costs a call and waits for nothing."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """Let ``name`` end here, and what is marked next begin."""
        event = self._device.event(self, timing=True)
        self._device.record(event)
        self._marks.append((name, event))

    def seconds(self) -> list[tuple[str, float]]:
        """What lay between each mark and the one before it, when the stream has passed them."""
        if self._marks:
            self._device.wait(self._marks[-1][1])
        pairs = itertools.pairwise(self._marks)
        return [(name, self._between(start, end)) for (_, start), (name, end) in pairs]

    def _between(self, start: Any, end: Any) -> float:
        (milliseconds,) = self._device.call(cuda.cuEventElapsedTime, start, end)
        return float(milliseconds) / 1e3


class _Allocation:
    """Device memory that is freed when the last buffer in it is gone."""

    def __init__(self, device: Device, nbytes: int) -> None:
        (address,) = device.call(cuda.cuMemAlloc, nbytes)
        self.address = int(address)
        self._device, self._nbytes = device, nbytes
        self._staging: _Staging | None = None
        device.keep(self, cuda.cuMemFree, self.address)

    def staging(self) -> _Staging:
        """Host memory of the same size, from the first fill on."""
        if self._staging is None:
            self._staging = _Staging(self._device, self._nbytes)
        return self._staging


class _Staging:
    """Pinned host memory, which the device reads after the call that copies it has returned."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self._device = device
        (address,) = device.call(cuda.cuMemAllocHost, nbytes)
        self.address = int(address)
        device.keep(self, cuda.cuMemFreeHost, self.address)
        self._read = device.event(self)

    def wait(self) -> None:
        """Return when the last copy has been read; at once if there was none."""
        self._device.wait(self._read)

    def record(self) -> None:
        """The copy that was just given to the stream is the one to wait for."""
        self._device.record(self._read)
