"""Tensors in a device's memory, and copies between it and the host."""

from __future__ import annotations

import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sana_rt.errors import BindingError
from sana_rt.tensors import num_bytes

if TYPE_CHECKING:
    from sana_rt.runtime.backends.cuda_device import Card

HostArray = NDArray[Any]

#: numpy's type for the elements of a host copy; bfloat16, which numpy lacks, travels as bits.
HOST_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Buffer:
    """A dense tensor in device memory, or a contiguous part of one; it keeps its memory alive."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    owner: object = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return num_bytes(self.dtype, self.shape)

    def __getitem__(self, part: slice) -> Buffer:
        """The rows ``start:stop`` of the first axis, in the same memory."""
        start, stop, step = part.indices(self.shape[0])
        if step != 1:
            raise BindingError(f"A buffer cannot be cut with step {step}.", expected="step 1.")
        row = num_bytes(self.dtype, self.shape[1:])
        shape = (max(stop - start, 0), *self.shape[1:])
        return replace(self, address=self.address + start * row, shape=shape)

    def row(self, index: int) -> Buffer:
        """Row ``index`` of the first axis, without that axis."""
        return self[index : index + 1].view(self.shape[1:])

    def view(self, shape: tuple[int, ...]) -> Buffer:
        """The first elements of the memory as another shape, which may be smaller."""
        if math.prod(shape) > math.prod(self.shape):
            raise BindingError(
                f"A buffer of shape {self.shape} cannot be viewed as {shape}.",
                expected=f"at most {math.prod(self.shape):,} elements.",
            )
        return replace(self, shape=shape)


class Timer(ABC):
    """Times of what the device does, between marks."""

    @abstractmethod
    def mark(self, name: str) -> None:
        """Let ``name`` end here, and what is marked next begin."""

    @abstractmethod
    def seconds(self) -> list[tuple[str, float]]:
        """The time from each mark to the next, under the name of the latter."""


class HostTimer(Timer):
    """Where work is done when the call that asks for it returns."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, float]] = []

    def mark(self, name: str) -> None:
        """Look at the clock."""
        self._marks.append((name, time.perf_counter()))

    def seconds(self) -> list[tuple[str, float]]:
        """The time from each mark to the next."""
        pairs = itertools.pairwise(self._marks)
        return [(name, end - start) for (_, start), (name, end) in pairs]


class Memory(ABC):
    """Memory of one device. Copies are ordered with the graphs that run on the device.

    Where it is ``staged``, what is filled goes through pinned memory of the host, of its size;
    a few MiB serve all other copies, piece by piece.
    """

    staged = False

    def __init__(self) -> None:
        self.allocations = 0  # how often `allocate` was called; flat after warm-up

    @property
    def card(self) -> Card | None:
        """The card whose memory it is; None for that of the host."""
        return None

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> Buffer:
        """A new tensor of zeros."""
        self.allocations += 1
        address, owner = self._allocate(num_bytes(dtype, shape))
        return Buffer(address, dtype, shape, owner)

    def upload(self, destination: Buffer, array: HostArray) -> None:
        """Copy a host array of the buffer's shape; float32 is rounded to a bfloat16 buffer."""
        self._upload(destination, _fitting(array, destination))

    def fill(self, destination: Buffer, array: HostArray) -> None:
        """:meth:`upload` what changes at every step, without waiting for the device."""
        self._fill(destination, _fitting(array, destination))

    def copy(self, destination: Buffer, source: Buffer) -> None:
        """Copy between two buffers of one shape on the device."""
        _check_copy(destination, source.shape, source.dtype == destination.dtype)
        self._copy(destination, source)

    def download(self, source: Buffer) -> HostArray:
        """A host copy; bfloat16 becomes float32."""
        host = np.empty(source.shape, HOST_DTYPES[source.dtype])
        self._download(host, source)
        return widen(host) if source.dtype == "bfloat16" else host

    def begin(self, moment: str) -> None:  # noqa: B027 (a host has no errors of its own)
        """Say in words what comes now, for messages about the device."""

    def timer(self) -> Timer:
        """A timer of what the device does."""
        return HostTimer()

    def close(self) -> None:  # noqa: B027 (most have nothing to do)
        """Give back what copies need beside the buffers; buffers go with their last user."""

    @abstractmethod
    def clear(self, buffer: Buffer) -> None:
        """Fill a buffer with zeros."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that can still be allocated, or None where the device does not say."""

    @abstractmethod
    def _allocate(self, nbytes: int) -> tuple[int, object]:
        """Address and owner of ``nbytes`` zero bytes."""

    @abstractmethod
    def _upload(self, destination: Buffer, host: HostArray) -> None: ...

    def _fill(self, destination: Buffer, host: HostArray) -> None:
        self._upload(destination, host)

    @abstractmethod
    def _copy(self, destination: Buffer, source: Buffer) -> None: ...

    @abstractmethod
    def _download(self, host: HostArray, source: Buffer) -> None: ...


def host_dtype(dtype: str) -> str:
    """Dtype of the host copy of a buffer (:meth:`Memory.download`)."""
    return "float32" if dtype == "bfloat16" else HOST_DTYPES[dtype].name


def to_device_dtype(array: HostArray, dtype: str) -> HostArray:
    """``array`` as the host form of ``dtype``: float32 is rounded for bfloat16 (ties to even)."""
    if dtype != "bfloat16" or array.dtype != np.float32:
        return array
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet_nan = (bits >> 16) | 0x40  # rounding must not carry a NaN into infinity
    return np.where(np.isnan(array), quiet_nan, rounded).astype(np.uint16)


def widen(bits: HostArray) -> HostArray:
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _fitting(array: HostArray, destination: Buffer) -> HostArray:
    """The elements of ``array`` as they lie in the buffer."""
    host = to_device_dtype(array, destination.dtype)
    _check_copy(destination, host.shape, host.dtype == HOST_DTYPES[destination.dtype])
    return np.ascontiguousarray(host)


def _check_copy(destination: Buffer, shape: tuple[int, ...], same_dtype: bool) -> None:
    if not same_dtype or shape != destination.shape:
        raise BindingError(
            f"A tensor of shape {shape} was copied into another kind of buffer.",
            expected=f"{destination.dtype} of shape {destination.shape}.",
        )
