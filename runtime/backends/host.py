"""Host memory: buffers are numpy arrays."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from sana_rt.errors import DeviceMemoryError
from sana_rt.runtime.backends.buffers import Buffer, HostArray, Memory

_ALIGNMENT = 64  # bytes of a cache line, and of the widest vector register


class HostMemory(Memory):
    """The memory of the process."""

    def free_bytes(self) -> int | None:
        """What the kernel can give without swapping, or less where a control group limits it."""
        candidates = [_available_bytes(), _group_bytes()]
        return min((value for value in candidates if value is not None), default=None)

    def clear(self, buffer: Buffer) -> None:
        """Fill a buffer with zeros."""
        ctypes.memset(buffer.address, 0, buffer.nbytes)

    def _allocate(self, nbytes: int) -> tuple[int, object]:
        try:
            memory = np.zeros(nbytes + _ALIGNMENT, np.uint8)
        except MemoryError as error:
            raise DeviceMemoryError(f"The system refused {nbytes:,} bytes.") from error
        address = -(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        return address, memory

    def _upload(self, destination: Buffer, host: HostArray) -> None:
        ctypes.memmove(destination.address, host.ctypes.data, destination.nbytes)

    def _copy(self, destination: Buffer, source: Buffer) -> None:
        ctypes.memmove(destination.address, source.address, destination.nbytes)

    def _download(self, host: HostArray, source: Buffer) -> None:
        ctypes.memmove(host.ctypes.data, source.address, source.nbytes)


def _available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """What Linux can give without swapping."""
    kibibytes = _field(meminfo, "MemAvailable:")
    return None if kibibytes is None else kibibytes << 10


def _group_bytes(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group (version 2) of the process allows beyond its anonymous memory."""
    limit, used = group / "memory.max", _field(group / "memory.stat", "anon")
    if used is None or not limit.is_file() or not (text := limit.read_text().strip()).isdigit():
        return None
    return max(0, int(text) - used)


def _field(file: Path, name: str) -> int | None:
    """The number after ``name`` in a kernel's table of names and numbers."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), None)
