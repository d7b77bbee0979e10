"""The controls of the simulated ``libcuda.so.1`` that this process has loaded.

device.reset(seed=3)                # a new device, as in a new process
device.fail("allocation", nth=2)    # the second allocation from now on
report = device.report()            # calls, bytes, what is live, violations
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

SONAME: Final = "libcuda.so.1"
#: The card that plans for SM120 are for.
CARD: Final = "Simulated card of compute capability 12.0"
MEMORY: Final = 32 << 30

_KERNEL: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)


class Range(ctypes.Structure):
    """Device memory that a kernel reads or writes."""

    _fields_ = (
        ("address", ctypes.c_ulonglong),
        ("bytes", ctypes.c_size_t),
        ("writes", ctypes.c_int),
    )


_ARGUMENTS: Final = {
    "simCard": (
        *(ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int),
        *(ctypes.c_size_t, ctypes.c_int),
    ),
    "simFail": (ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int),
    "simFailWork": (ctypes.c_uint64, ctypes.c_int),
    "simHang": (ctypes.c_uint64, ctypes.c_double),
    "simIsStream": (ctypes.c_void_p,),
    "simIsCapturing": (ctypes.c_void_p,),
    "simIsUsed": (ctypes.c_ulonglong,),
    "simBytes": (ctypes.c_ulonglong, ctypes.c_size_t),
    "simLaunch": (
        *(ctypes.c_void_p, ctypes.c_char_p, _KERNEL, ctypes.c_size_t),
        *(ctypes.POINTER(Range), ctypes.c_size_t),
    ),
}


@dataclass(frozen=True)
class Report:
    """What happened on the device; calls, bytes, allocations and peaks since the last mark."""

    calls: dict[str, int]
    bytes: dict[str, int]  # by kind of copy, such as "pinned to device"
    violations: list[str]
    errors: list[str]  # why calls failed, violations and demanded failures included
    blocks: list[str]  # live memory
    device_bytes: int
    pinned_bytes: int
    peak_device_bytes: int
    peak_pinned_bytes: int
    allocations: int
    streams: int
    events: int
    graphs: int
    executable_graphs: int
    contexts: int
    captures: int
    pending: int
    executed: int
    failed: int

    @property
    def leaks(self) -> list[str]:
        """What has not been given back."""
        kinds = ("streams", "events", "graphs", "executable_graphs", "captures", "contexts")
        counted = [f"{getattr(self, kind)} {kind}" for kind in kinds if getattr(self, kind)]
        return self.blocks + counted


class Device:
    """The device, its schedule and its faults; the library is loaded when it is first used."""

    @functools.cached_property
    def _library(self) -> Any:
        library = ctypes.CDLL(SONAME)
        library.simReport.restype = ctypes.c_char_p
        library.simBytes.restype = ctypes.c_void_p
        for name, arguments in _ARGUMENTS.items():
            getattr(library, name).argtypes = arguments
        return library

    # --- For tests ---

    def reset(
        self,
        *,
        seed: int = 0,
        memory: int = MEMORY,
        name: str = CARD,
        capability: tuple[int, int] = (12, 0),
        driver: int = 13010,
        count: int = 1,
    ) -> None:
        """Start again with another device; what is left of the old one is refused quietly.

        ``seed`` 0 does work as late as possible and in order; others draw when and in which
        order it is done, within what CUDA allows.
        """
        self._library.simReset()
        self._library.simCard(name.encode(), *capability, driver, memory, count)
        self._library.simSeed(seed)

    def report(self) -> Report:
        """Everything that is counted."""
        return Report(**json.loads(self._library.simReport()))

    def mark(self) -> None:
        """Count calls, bytes, allocations and peaks from here on."""
        self._library.simMark()

    def fail(self, call: str, nth: int = 1, result: int = 2, *, sticky: bool = False) -> None:
        """Let the ``nth`` call from now on fail with a CUresult (2: out of memory).

        ``call`` is a name such as ``cuMemAlloc``, a group (``allocation``, ``launch``, ``copy``,
        ``clear``) or ``*``. After a ``sticky`` one every call fails as it did.
        """
        self._library.simFail(call.encode(), nth, int(result), int(sticky))

    def fail_work(self, nth: int = 1, result: int = 700) -> None:
        """Let the ``nth`` operation from now on fail on the device, and so all later calls."""
        self._library.simFailWork(nth, int(result))

    def fail_everything(self, result: int) -> None:
        """Let every call fail from now on: what is left on the device does not matter."""
        self._library.simFailAlways(int(result))

    def hang(self, nth: int = 1, *, patience: float = 5.0) -> None:
        """Let the ``nth`` operation from now on never end.

        A call that waits for it for more than ``patience`` seconds is a violation.
        """
        self._library.simHang(nth, patience)

    def release(self) -> None:
        """Let the operation that hangs go on."""
        self._library.simRelease()

    def forgive(self) -> list[str]:
        """The violations so far, which are then forgotten."""
        found = self.report().violations
        self._library.simForgive()
        return found

    # --- For the stand-ins of libraries that run kernels ---

    @property
    def has_context(self) -> bool:
        """Whether the thread has a current CUDA context."""
        return bool(self._library.simHasContext())

    @property
    def is_captured(self) -> bool:
        """Whether the thread is capturing a stream."""
        return bool(self._library.simCaptures())

    def is_stream(self, stream: int) -> bool:
        """Whether kernels may use it: it is one, and not the default stream."""
        return bool(self._library.simIsStream(stream))

    def is_capturing(self, stream: int) -> bool:
        """Whether it is being captured."""
        return bool(self._library.simIsCapturing(stream))

    def is_used(self, address: int) -> bool:
        """Whether work that is not done uses the allocation at an address."""
        return bool(self._library.simIsUsed(address))

    def violation(self, text: str) -> None:
        """A documented rule was broken."""
        self._library.simViolation(text.encode())

    def allocate(self, nbytes: int, label: str) -> int | None:
        """Device memory of a library, or None."""
        address = ctypes.c_ulonglong()
        self._library.simLabel(label.encode())
        result = self._library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(nbytes))
        self._library.simLabel(b"")
        return None if result else address.value

    def free(self, address: int) -> None:
        """Give it back."""
        self._library.cuMemFree_v2(ctypes.c_ulonglong(address))

    def storage(self, address: int, nbytes: int) -> int | None:
        """Where the bytes of device memory are, or None and a violation."""
        return self._library.simBytes(address, nbytes)

    def launch(self, stream: int, name: str, kernel: int, ranges: Sequence[Range]) -> bool:
        """Enqueue a kernel (of :meth:`kernel`), or capture it."""
        array = (Range * len(ranges))(*ranges)
        arguments = (stream, name.encode(), _run, kernel, array, len(ranges))
        return not self._library.simLaunch(*arguments)

    def synchronize(self, stream: int) -> bool:
        """Wait inside a call, as a library does."""
        return not self._library.cuStreamSynchronize(ctypes.c_void_p(stream))

    def kernel(self, function: Callable[[], None]) -> int:
        """A number to launch ``function`` by; it lives as long as the process, as graphs may."""
        _KERNELS.append(function)
        return len(_KERNELS) - 1


_KERNELS: Final[list[Callable[[], None]]] = []


@_KERNEL
def _run(number: int) -> int:
    """Called by the library for a kernel that has come to its turn."""
    collecting = gc.isenabled()
    gc.disable()  # what is collected frees memory, which no kernel does
    try:
        _KERNELS[number]()
    except Exception as error:  # noqa: BLE001 - it must not cross the library's frames
        device.violation(f"a kernel failed: {error!r}")
        return 1
    finally:
        if collecting:
            gc.enable()
    return 0


device: Final = Device()
