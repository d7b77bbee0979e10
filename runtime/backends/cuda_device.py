"""An NVIDIA GPU and one stream, through the driver's API. Not run on hardware yet."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from cuda.bindings import driver as cuda

from sana_rt.errors import BackendError, DeviceLostError, DeviceMemoryError, SanaRTError

#: Seconds after which a wait gives up, unless told otherwise: no step takes nearly as long.
DEFAULT_TIMEOUT: Final = 600.0

_SHORTEST_PAUSE, _LONGEST_PAUSE = 20e-6, 500e-6  # seconds between two looks at an event
#: After these the context answers every call with the same error.
_LOST: Final = frozenset(
    getattr(cuda.CUresult, f"CUDA_ERROR_{name}")
    for name in (
        *("ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION", "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE"),
        *("INVALID_PC", "HARDWARE_STACK_ERROR", "ASSERT", "LAUNCH_FAILED", "LAUNCH_TIMEOUT"),
        *("ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "EXTERNAL_DEVICE", "CONTAINED"),
        *("CONTEXT_IS_DESTROYED", "MPS_CLIENT_TERMINATED", "TENSOR_MEMORY_LEAK", "UNKNOWN"),
    )
)


@dataclass(frozen=True)
class Card:
    """The first GPU: its name, compute capability (``12.0``), and the driver's version of CUDA."""

    name: str
    compute_capability: str
    driver: str


def card() -> Card:
    """The card that is here; nothing is allocated on it.

    Raises :class:`BackendError` if there is none, or no driver.
    """
    return _describe(_first_device())


class Device:
    """The first GPU, in the context that other libraries share, and one stream of its own.

    It can be used from any thread. ``moment`` and ``graph`` say for messages what is being done.
    Every wait looks at an event again and again, so that it can give up: after ``timeout`` seconds,
    or an error from which the context does not recover, the device is lost and every call raises
    :class:`DeviceLostError`, but for those that give something back.
    """

    def __init__(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        device = _first_device()
        self.card = _describe(device)
        self.moment = self.graph = ""
        self.lost = False
        self._timeout = timeout
        self._failure = ""
        self._capturing = False
        self._kept: dict[int, tuple[Callable[..., Any], object]] = {}  # by number, oldest first
        self._numbers = itertools.count()
        self._holders: weakref.WeakSet[Any] = weakref.WeakSet()
        self._garbage: list[int] = []
        (self._context,) = _checked(cuda.cuDevicePrimaryCtxRetain(device))
        self._release = weakref.finalize(self, cuda.cuDevicePrimaryCtxRelease, device)
        (stream,) = self.call(cuda.cuStreamCreate, cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.stream = int(stream)
        self._keep(cuda.cuStreamDestroy, stream)
        try:
            self._idle = self.event(self)
        except SanaRTError:
            self.close()
            raise

    def call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> tuple[Any, ...]:
        """The values of a call of the driver, or the error that it reports."""
        status, *values = self._answer(function, *arguments)
        if status != cuda.CUresult.CUDA_SUCCESS:
            raise self._error(function, status, arguments)
        return tuple(values)

    def keep(
        self, holder: object, function: Callable[..., Any], handle: object
    ) -> weakref.finalize[..., Any]:
        """Give ``handle`` back with ``holder``, or when the device is closed, or when called."""
        return weakref.finalize(holder, self._give_back, self._keep(function, handle))

    def event(self, holder: object, *, timing: bool = False) -> Any:
        """A new event, which is given back with ``holder``."""
        flags = cuda.CUevent_flags
        kind = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        (event,) = self.call(cuda.cuEventCreate, kind)
        if holder is self:
            self._keep(cuda.cuEventDestroy, event)
        else:
            self.keep(holder, cuda.cuEventDestroy, event)
        return event

    def record(self, event: Any) -> None:
        """Let ``event`` stand behind all that the stream has been given."""
        self.call(cuda.cuEventRecord, event, self.stream)

    def wait(self, event: Any) -> None:
        """Return when the stream has come to ``event``, which is at once if it is not recorded."""
        deadline = time.monotonic() + self._timeout
        pause = _SHORTEST_PAUSE
        while not self._reached(event):
            if time.monotonic() > deadline:
                raise self._lose(f"did not answer for {self._timeout:g} seconds")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def synchronize(self) -> None:
        """Return when the stream is idle."""
        self.record(self._idle)
        self.wait(self._idle)

    def settle(self) -> bool:
        """Return when the stream is idle, and whether the device can still be asked; no errors."""
        with contextlib.suppress(SanaRTError):
            self.synchronize()
        return not self.lost

    def capture(self, work: Callable[[], None]) -> Any:
        """What ``work`` gives to the stream, not run but ready to be launched as one graph.

        Raises:
            BackendError: something in it cannot be captured; nothing of it has been run.
        """
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call(cuda.cuStreamBeginCapture, self.stream, mode)
        self._capturing = True
        try:
            work()
        except BaseException:
            with contextlib.suppress(SanaRTError):  # an invalid capture has to be ended, too
                self._destroy(cuda.cuGraphDestroy, *self._end_capture())
            raise
        (graph,) = self._end_capture()
        try:
            (launchable,) = self.call(cuda.cuGraphInstantiate, graph, 0)
        finally:
            self._destroy(cuda.cuGraphDestroy, graph)
        return launchable

    def launch(self, launchable: Any) -> None:
        """Give a captured graph to the stream."""
        self.call(cuda.cuGraphLaunch, launchable, self.stream)

    def close(self) -> None:
        """Give everything back, the latest first, and the context."""
        for number in reversed(list(self._kept)):
            self._give_back(number)
        self.stream = 0
        self._release()

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = self.call(cuda.cuMemGetInfo)
        return int(free), int(total)

    def out_of_memory(self, what: str) -> DeviceMemoryError:
        """The error for memory that the device did not give."""
        free, total = self.memory_info()
        return DeviceMemoryError(
            f"CUDA did not allocate {what}; {free:,} of {total:,} bytes of the GPU are free.",
            remedy="free memory that other programs use, ask for a smaller clip, or let fewer "
            "graphs be loaded at a time (--max-memory).",
        )

    def check(self) -> None:
        """Raise what the device reports, if it failed."""
        if not self._capturing:
            self._reached(self._idle)

    def at(self) -> str:
        """What the stream was given last; what fails may have been given a little earlier."""
        graph = f" in {self.graph}" if self.graph else ""
        return graph + (f" ({self.moment})" if self.moment else "")

    def immortalize_if_lost(self, holder: object) -> None:
        """Let ``holder`` of a library's objects never go once the device is lost.

        Their destructors would wait for it, if not before then when the process ends.
        """
        self._holders.add(holder)

    def _answer(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> tuple[Any, ...]:
        """The status of a call, and its values."""
        if self.lost:
            raise self._lost_error()
        (status,) = cuda.cuCtxSetCurrent(self._context)
        return function(*arguments) if status == cuda.CUresult.CUDA_SUCCESS else (status,)

    def _reached(self, event: Any) -> bool:
        status, *_ = self._answer(cuda.cuEventQuery, event)
        if status in (cuda.CUresult.CUDA_SUCCESS, cuda.CUresult.CUDA_ERROR_NOT_READY):
            return bool(status == cuda.CUresult.CUDA_SUCCESS)
        raise self._error(cuda.cuEventQuery, status, ())

    def _end_capture(self) -> tuple[Any, ...]:
        self._capturing = False
        try:
            return self.call(cuda.cuStreamEndCapture, self.stream)
        except BackendError:
            if self._is_captured():  # the failed call did not end it
                self._destroy(cuda.cuGraphDestroy, *self.call(cuda.cuStreamEndCapture, self.stream))
            raise
        finally:
            garbage, self._garbage = self._garbage, []
            for number in garbage:
                self._give_back(number)

    def _is_captured(self) -> bool:
        status, *state = self._answer(cuda.cuStreamIsCapturing, self.stream)
        none = cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
        return bool(status == cuda.CUresult.CUDA_SUCCESS and state != [none])

    def _keep(self, function: Callable[..., Any], handle: object) -> int:
        number = next(self._numbers)
        self._kept[number] = (function, handle)
        return number

    def _give_back(self, number: int) -> None:
        """Give something back; raises nothing.

        While work is captured it has to wait. What a lost device held stays where it is: the
        driver would refuse, or wait for ever.
        """
        if number not in self._kept:
            return
        if self._capturing:
            self._garbage.append(number)
            return
        function, handle = self._kept.pop(number)
        if function in _FREEING:  # the rest CUDA destroys when it is not used any more
            self.settle()
        self._destroy(function, handle)

    def _destroy(self, function: Callable[..., Any], handle: object) -> None:
        if not self.lost:
            cuda.cuCtxSetCurrent(self._context)
            function(handle)

    def _error(
        self, function: Callable[..., Any], status: Any, arguments: tuple[Any, ...]
    ) -> SanaRTError:
        if status in _LOST:
            return self._lose(f"failed with {status.name}")
        if status == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            asked = f"{arguments[0]:,} bytes" if function in _ALLOCATING else "what it needs"
            place = "pinned host memory" if function is cuda.cuMemAllocHost else self.card.name
            return self.out_of_memory(f"{asked} of {place}")
        return BackendError(
            f"{function.__name__} of CUDA's driver failed with {status.name}{self.at()}.",
            remedy="play without CUDA graphs (--no-cuda-graph) to see whether they are the cause.",
        )

    def _lose(self, failure: str) -> DeviceLostError:
        self.lost, self._failure = True, failure + self.at()
        self._release.detach()
        for holder in self._holders:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(holder))
        return self._lost_error()

    def _lost_error(self) -> DeviceLostError:
        return DeviceLostError(
            f"{self.card.name} {self._failure}. Its CUDA context is lost.",
            remedy="restart the process. If it happens again, find the graph: play with "
            "--no-cuda-graph --check-finite, and compare the plans with their graphs "
            "(sana-rt verify BUNDLE --backend tensorrt).",
        )


_FREEING: Final = (cuda.cuMemFree, cuda.cuMemFreeHost)
_ALLOCATING: Final = (cuda.cuMemAlloc, cuda.cuMemAllocHost)


def _first_device() -> Any:
    try:
        _checked(cuda.cuInit(0))
    except RuntimeError as error:  # cuda-python looks for the driver's library now
        raise BackendError(f"NVIDIA's driver is not installed: {error}") from error
    (device,) = _checked(cuda.cuDeviceGet(0))
    return device


def _describe(device: Any) -> Card:
    kinds = cuda.CUdevice_attribute
    (name,) = _checked(cuda.cuDeviceGetName(256, device))
    (version,) = _checked(cuda.cuDriverGetVersion())
    major, minor = (
        _checked(cuda.cuDeviceGetAttribute(kind, device))[0]
        for kind in (
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    cuda_version = f"{version // 1000}.{version % 1000 // 10}"
    return Card(name.partition(b"\0")[0].decode(), f"{major}.{minor}", cuda_version)


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of a call before there is a context, or the error that it reports."""
    status, *values = result
    if status == cuda.CUresult.CUDA_ERROR_NO_DEVICE:
        raise BackendError("CUDA finds no GPU.")
    if status != cuda.CUresult.CUDA_SUCCESS:
        raise BackendError(f"A call of CUDA's driver failed ({status.name}).")
    return tuple(values)
