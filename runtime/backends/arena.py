"""Device memory for activations, one for all plans: they run one after another."""

from __future__ import annotations

import weakref
from typing import Protocol

from sana_rt.runtime.backends.buffers import Buffer
from sana_rt.runtime.backends.cuda import CudaMemory


class Tenant(Protocol):
    """What has the arena's address in it."""

    def arena_moved(self) -> None:
        """Take the new one."""


class Arena:
    """Memory at one address, which is in every context and every captured graph.

    So it should have its final size before the first capture.
    """

    def __init__(self, memory: CudaMemory) -> None:
        self.tenants: weakref.WeakSet[Tenant] = weakref.WeakSet()
        self._memory = memory
        self._buffer: Buffer | None = None

    @property
    def address(self) -> int:
        """Where it is."""
        assert self._buffer is not None
        return self._buffer.address

    @property
    def nbytes(self) -> int:
        """Its size."""
        return 0 if self._buffer is None else self._buffer.nbytes

    def reserve(self, nbytes: int) -> None:
        """Grow to ``nbytes``, if it is smaller; the old memory makes room first.

        Raises:
            DeviceMemoryError: the device has not that much; there is no arena then.
        """
        if nbytes > self.nbytes:
            self.resize(nbytes)

    def resize(self, nbytes: int) -> None:
        """Give its memory back and allocate ``nbytes``; the tenants move.

        With 0 there is no arena.
        """
        self._buffer = None
        if nbytes:
            self._buffer = self._memory.allocate("uint8", (nbytes,))
            for tenant in list(self.tenants):
                tenant.arena_moved()
