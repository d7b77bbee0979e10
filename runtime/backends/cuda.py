"""Memory of an NVIDIA GPU, copies on its stream, and times. Not run on hardware yet."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Iterator
from typing import Any, Final

from cuda.bindings import driver as cuda

from sana_rt.errors import SanaRTError
from sana_rt.runtime.backends.buffers import Buffer, HostArray, Memory, Timer
from sana_rt.runtime.backends.cuda_device import DEFAULT_TIMEOUT, Card, Device

_ZEROS: Final = 0
#: What of a copy that is waited for lies in pinned memory at a time.
_PIECE: Final = 4 << 20


class CudaMemory(Memory):
    """Memory of the first GPU; copies take their turns with the graphs on the device's stream."""

    staged = True

    def __init__(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        super().__init__()
        self.device = Device(timeout)
        self._pinned: _Staging | None = None
        weakref.finalize(self, self.device.close)  # with what is kept until then

    @property
    def stream(self) -> int:
        """The stream, for libraries that work on it."""
        return self.device.stream

    @property
    def card(self) -> Card:
        """The first GPU."""
        return self.device.card

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
        for pinned, at, nbytes in self._pieces(destination.nbytes):
            pinned.wait()
            ctypes.memmove(pinned.address, host.ctypes.data + at, nbytes)
            self._transfer(destination.address + at, pinned.address, nbytes)
            pinned.record()

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
        for pinned, at, nbytes in self._pieces(source.nbytes):
            self._transfer(pinned.address, source.address + at, nbytes)
            pinned.record()
            pinned.wait()
            ctypes.memmove(host.ctypes.data + at, pinned.address, nbytes)

    def _pieces(self, nbytes: int) -> Iterator[tuple[_Staging, int, int]]:
        """Pinned memory for each piece of a copy in turn, where the piece begins, and its size.

        With ordinary host memory the driver would wait inside the call, where a wait cannot give
        up.
        """
        if self._pinned is None:
            self._pinned = _Staging(self.device, _PIECE)
        for at in range(0, nbytes, _PIECE):
            yield self._pinned, at, min(_PIECE, nbytes - at)

    def _transfer(self, destination: int, source: int, nbytes: int) -> None:
        """Copy; the direction follows from the addresses."""
        self.device.call(cuda.cuMemcpyAsync, destination, source, nbytes, self.stream)


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
    """Pinned host memory; the device reads or writes it after the call that copies has returned."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self._device = device
        (address,) = device.call(cuda.cuMemAllocHost, nbytes)
        self.address = int(address)
        device.keep(self, cuda.cuMemFreeHost, self.address)
        self._copied = device.event(self)

    def wait(self) -> None:
        """Return when the device has made the last copy; at once if there was none."""
        self._device.wait(self._copied)

    def record(self) -> None:
        """The copy that was just given to the stream is the one to wait for."""
        try:
            self._device.record(self._copied)
        except SanaRTError:
            self._device.settle()  # no event stands behind the copy
            raise
