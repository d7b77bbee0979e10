"""What passes between TensorRT and its user: messages, bytes, shapes."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError("a logger has a method log")


class Logger(ILogger):
    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        self.min_severity = min_severity

    def log(self, severity: Severity, msg: str) -> None:
        if severity <= self.min_severity:
            print(f"[{severity.name}] {msg}")  # noqa: T201 - as the real one does


class IProfiler:
    """Is told how long kernels took."""

    def __init__(self) -> None:
        """Derived classes have to call it, as pybind11 asks for."""
        self._made = True

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError("a profiler has a method report_layer_time")


class Dims(tuple[int, ...]):
    """A shape."""

    __slots__ = ()

    def __new__(cls, shape: Iterable[int] = ()) -> Dims:
        return super().__new__(cls, shape)


class IHostMemory(bytearray):
    """Bytes of the library."""

    @property
    def nbytes(self) -> int:
        return len(self)

    @property
    def dtype(self) -> Any:
        from tensorrt_rtx._enumerations import DataType

        return DataType.UINT8
