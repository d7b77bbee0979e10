"""Contexts: the rules of a run, and the run itself on ONNX Runtime."""

from __future__ import annotations

import ctypes
import functools
import math
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tests.simulator.simulated_cuda import Range, device

from sana_rt.engines import plan_table
from sana_rt.runtime.backends import onnxruntime
from sana_rt.runtime.backends.base import Artifact
from sana_rt.runtime.backends.buffers import HOST_DTYPES, Buffer
from sana_rt.runtime.backends.host import HostMemory
from sana_rt.tensors import num_bytes, unify
from tensorrt_rtx import _environment
from tensorrt_rtx._config import IRuntimeConfig
from tensorrt_rtx._enumerations import (
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
)
from tensorrt_rtx._values import Dims, IProfiler, Severity

if TYPE_CHECKING:
    from tensorrt_rtx._engine import ICudaEngine

_ALIGNMENT: Final = 256
_PERSISTENT_BYTES: Final = 4096  # of a context, beside the activations
_POISON: Final = 0xFF
_LAZY: Final = DynamicShapesKernelSpecializationStrategy.LAZY
_EAGER: Final = DynamicShapesKernelSpecializationStrategy.EAGER
_USER_MANAGED: Final = ExecutionContextAllocationStrategy.USER_MANAGED


def _exclusive(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a context, which two threads must not use at once."""

    @functools.wraps(method)
    def guarded(self: IExecutionContext, *args: Any, **kwargs: Any) -> Any:
        if not self._lock.acquire(blocking=False):
            device.violation(f"{self.name}: two threads use one context")
            with self._lock:
                return method(self, *args, **kwargs)
        try:
            return method(self, *args, **kwargs)
        finally:
            self._lock.release()

    return guarded


def _settles(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that changes what a run depends on, which a capture would not see."""

    @functools.wraps(method)
    @_exclusive
    def guarded(self: IExecutionContext, *args: Any, **kwargs: Any) -> Any:
        if device.is_captured:
            device.violation(f"{self.name}: {method.__name__} while a stream is captured")
        return method(self, *args, **kwargs)

    return guarded


class IExecutionContext:
    """A plan with shapes, addresses and memory."""

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self.engine = engine
        self.name = engine.name
        self._plan = engine._source.plan
        self._strategy = config.dynamic_shapes_kernel_specialization_strategy
        self._user_managed = config.get_execution_context_allocation_strategy() == _USER_MANAGED
        self._config = weakref.ref(config)  # both have to outlive the context
        cache = config.get_runtime_cache()
        self._cache = None if cache is None else weakref.ref(cache)
        self._lock = threading.RLock()
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)
        self._needed = 0  # 0: not known for these shapes
        self._compiled: set[tuple[tuple[int, ...], ...]] = set()  # shapes with kernels of their own
        self._persistent: list[int] = []
        self._runs: dict[Any, _Run] = {}
        self._profiler: IProfiler | None = None
        self._emits_profile = True
        self._profiled = False  # whether a run was recorded for the profiler
        weakref.finalize(self, _give_back, self.name, self._persistent)

    # --- What a run depends on ---

    @_settles
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if profile_index != 0:
            return self._refuse(f"there is no profile {profile_index}")
        self._check_stream(stream_handle)
        self._profile = profile_index
        self._shapes.clear()
        self._needed = 0
        return True

    @_settles
    def set_input_shape(self, name: str, shape: tuple[int, ...] | list[int] | Dims) -> bool:
        spec = next((spec for spec in self._plan.inputs if spec.name == name), None)
        if spec is None:
            return self._refuse(f"there is no input {name!r}")
        if self._profile is None:
            device.violation(f"{self.name}: a shape before the optimization profile")
        sizes = tuple(shape)
        if not self._holds(spec.shape, sizes):
            return self._refuse(f"{name!r} of shape {sizes} is outside of the profile")
        if self._shapes.get(name) != sizes:
            self._shapes[name] = sizes
            self._needed = 0
        return True

    @_exclusive
    def infer_shapes(self) -> list[str]:
        missing = [spec.name for spec in self._plan.inputs if self._shape(spec.name) is None]
        if not missing:
            self._dims()
        return missing

    @_settles
    def update_device_memory_size_for_shapes(self) -> int:
        if self._profile is None or self.infer_shapes():
            device.violation(f"{self.name}: the size of its memory before profile and shapes")
            return 0
        self._needed = self._memory_for_shapes()
        return self._needed

    @_settles
    def set_device_memory(self, memory: int, size: int) -> None:
        if not self._user_managed:
            device.violation(f"{self.name}: memory for a context that manages its own")
        if memory % _ALIGNMENT:
            device.violation(f"{self.name}: its memory at {memory:#x} is not 256-byte aligned")
        if self._needed and size < self._needed:
            device.violation(f"{self.name}: {size} bytes of memory, and it needs {self._needed}")
        if device.storage(memory, size) is not None:
            self._memory = (int(memory), int(size))

    @_settles
    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in {spec.name for spec in (*self._plan.inputs, *self._plan.outputs)}:
            return self._refuse(f"there is no tensor {name!r}")
        if memory % _ALIGNMENT:
            device.violation(f"{self.name}: {name!r} at {memory:#x} is not 256-byte aligned")
        self._addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def get_tensor_shape(self, name: str) -> Dims:
        shape = self._shape(name)
        if shape is None and not self.infer_shapes():
            specs = {spec.name: spec for spec in self._plan.outputs}
            dims = self._dims()
            shape = tuple(dims.get(str(dim), dim) for dim in specs[name].shape)
        return Dims(self.engine.get_tensor_shape(name) if shape is None else shape)

    # --- A run ---

    @_exclusive
    def is_stream_capturable(self, stream: int) -> bool:
        lazy = self._strategy == _LAZY and bool(self._plan.profile)
        return device.is_stream(stream) and self._plan.user_allocation and not lazy

    @_exclusive
    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._is_ready(stream_handle):
            return False
        if not self._compile(stream_handle):
            return self._refuse("kernels for these shapes could not be compiled")
        run = self._run()
        if not device.launch(stream_handle, self.name, run.kernel, run.ranges):
            return self._refuse("Error Code 1: Cuda Runtime: the launch failed")
        return self._record(stream_handle)

    # --- Times ---

    @property
    def profiler(self) -> IProfiler | None:
        return self._profiler

    @profiler.setter
    @_settles
    def profiler(self, profiler: IProfiler | None) -> None:
        if profiler is not None and not getattr(profiler, "_made", False):
            raise TypeError("IProfiler.__init__() must be called when overriding __init__")
        self._profiler, self._profiled = profiler, False

    @property
    def enqueue_emits_profile(self) -> bool:
        return self._emits_profile

    @enqueue_emits_profile.setter
    @_settles
    def enqueue_emits_profile(self, emits: bool) -> None:
        self._emits_profile = emits

    @_exclusive
    def report_to_profiler(self) -> bool:
        if self._profiler is None or device.is_captured:
            return self._refuse("there is no profiler, or a stream is captured")
        if not self._profiled:
            return self._refuse("nothing was run since there is a profiler")
        if any(device.is_used(address) for address in self._persistent):
            device.violation(f"{self.name}: its times are asked for before the run is over")
        for name, milliseconds in _times(self.engine._source.log):
            told = _environment.renamed.get(name, name)
            self._profiler.report_layer_time(told, milliseconds)
        return True

    def _record(self, stream: int) -> bool:
        """A run is recorded for the profiler, which is told at once unless that is put off."""
        if self._profiler is None or device.is_capturing(stream):
            return True
        self._profiled = True
        if not self._emits_profile:
            return True
        return device.synchronize(stream) and self.report_to_profiler()

    # --- Parts of a run ---

    def _is_ready(self, stream: int) -> bool:
        """Whether all is there that a run needs; what only correct code may rely on is checked."""
        self._check_stream(stream)
        if self._config() is None or (self._cache is not None and self._cache() is None):
            device.violation(f"{self.name}: its configuration or runtime cache is gone")
        if not self.engine.weights_loaded:
            return self._refuse("its weights are not loaded")
        if missing := self.infer_shapes():
            return self._refuse(f"the shapes of {missing} are not set")
        names = [spec.name for spec in (*self._plan.inputs, *self._plan.outputs)]
        if unset := [name for name in names if not self._addresses.get(name)]:
            return self._refuse(f"the addresses of {unset} are not set")
        if not self._needed and self._user_managed:
            device.violation(f"{self.name}: a run before the size of its memory was asked for")
            self._needed = self._memory_for_shapes()
        if self._user_managed and self._memory[1] < self._needed:
            device.violation(f"{self.name}: a run in {self._memory[1]} of {self._needed} bytes")
            return False
        return True

    def _check_stream(self, stream: int) -> None:
        if not device.is_stream(stream):
            device.violation(f"{self.name}: {stream!r} is no stream, or the default one")
        if not device.has_context:
            device.violation(f"{self.name}: the thread has no current CUDA context")

    def _compile(self, stream: int) -> bool:
        """What happens at the first run of shapes, and at every run that allocates."""
        capturing = device.is_capturing(stream)
        dynamic = bool(self._plan.profile)
        if self._strategy == _LAZY and dynamic and capturing:
            device.violation(f"{self.name}: LAZY kernels of dynamic shapes are captured")
        shapes = tuple(self._shapes.values())
        if self._strategy == _EAGER and dynamic and shapes not in self._compiled:
            if not self._hold(256, "kernels"):
                return False
            self._compiled.add(shapes)
        if not self._plan.user_allocation:
            address = device.allocate(256, f"TensorRT, a run of {self.name}")
            if address is None:
                return False
            device.free(address)
        return True

    def _run(self) -> _Run:
        """The run with these shapes, addresses and memory."""
        key = (
            tuple(sorted(self._shapes.items())),
            tuple(sorted(self._addresses.items())),
            self._memory,
        )
        if key not in self._runs:
            self._runs[key] = _Run(self)
        return self._runs[key]

    # --- Shapes and memory ---

    def _allocate(self) -> bool:
        """Compile, unless the cache has it, and take what a context holds all the time."""
        cache = None if self._cache is None else self._cache()
        digest = self._plan.built_from.graph + self._strategy.name
        if cache is None or digest not in cache._kernels:
            _environment.compiled.append(self.name)
        if cache is not None:
            cache._kernels.add(digest)
        if not self._hold(_PERSISTENT_BYTES, "a context"):
            return False
        return self._user_managed or self._hold(
            max(self._plan.activation_bytes, 256), "activations"
        )

    def _hold(self, nbytes: int, what: str) -> bool:
        address = device.allocate(nbytes, f"TensorRT, {what} of {self.name}")
        if address is None:
            return self._refuse(f"OutOfMemory: {nbytes} bytes for {what} could not be allocated")
        self._persistent.append(address)
        return True

    def _shape(self, name: str) -> tuple[int, ...] | None:
        spec = next((spec for spec in self._plan.inputs if spec.name == name), None)
        if spec is None:
            return None
        if any(isinstance(dim, str) for dim in spec.shape):
            return self._shapes.get(name)
        return tuple(int(dim) for dim in spec.shape)

    def _dims(self) -> dict[str, int]:
        dims: dict[str, int] = {}
        for spec in self._plan.inputs:
            unify(spec, self._shape(spec.name) or (), dims)
        return dims

    def _holds(self, wanted: tuple[int | str, ...], sizes: tuple[int, ...]) -> bool:
        if len(wanted) != len(sizes):
            return False
        spans = [(self._plan.profile.get(str(dim)), dim) for dim in wanted]
        return all(
            size == dim if span is None else span.min <= size <= span.max
            for (span, dim), size in zip(spans, sizes, strict=True)
        )

    def _memory_for_shapes(self) -> int:
        """Activations: those of the largest shapes, in proportion to the inputs' elements."""
        largest = {name: span.max for name, span in self._plan.profile.items()}
        now = sum(math.prod(self._shape(spec.name) or ()) for spec in self._plan.inputs)
        most = sum(
            math.prod(largest.get(str(dim), dim) for dim in spec.shape)  # type: ignore[misc]
            for spec in self._plan.inputs
        )
        share = math.ceil(max(self._plan.activation_bytes, 4096) * now / most)
        return -(-share // _ALIGNMENT) * _ALIGNMENT

    def _refuse(self, why: str) -> bool:
        self.engine._runtime.logger.log(Severity.ERROR, f"IExecutionContext {self.name}: {why}")
        return False


class _Run:
    """A run on fixed buffers; its context owns it."""

    def __init__(self, context: IExecutionContext) -> None:
        plan, dims = context._plan, context._dims()
        self._buffers = {
            spec.name: (spec.dtype, tuple(dims.get(str(dim), dim) for dim in spec.shape))
            for spec in (*plan.inputs, *plan.outputs)
        }
        if any(isinstance(dim, str) for _, shape in self._buffers.values() for dim in shape):
            self._infer(context)
        self._addresses = dict(context._addresses)
        self._arena = (context._memory[0], context._needed) if context._user_managed else (0, 0)
        self._inputs = [spec.name for spec in plan.inputs]
        self._artifact = context.engine._source.artifact
        self._lasting = context._strategy != DynamicShapesKernelSpecializationStrategy.NONE
        outputs = {spec.name for spec in plan.outputs}
        self.ranges = [
            Range(self._addresses[name], num_bytes(dtype, shape), name in outputs)
            for name, (dtype, shape) in self._buffers.items()
        ]
        held = (context.engine._address, *context._persistent)
        self.ranges += [Range(address, 1, writes=False) for address in held]
        if self._arena[1]:
            self.ranges.append(Range(*self._arena, writes=True))
        self._bound: Any = None
        me = weakref.WeakMethod(self.play)
        self.kernel = device.kernel(lambda: _play(me))

    def play(self) -> None:
        """Run on the bytes of the buffers; the arena holds nothing before and nothing after."""
        self._spoil_arena()
        if self._bound is None:
            self._bound = self._bind()
        self._bound.run()
        self._spoil_arena()

    def _infer(self, context: IExecutionContext) -> None:
        """Dimensions of outputs that no input has, by a run on zeros."""
        session = _session(context.engine._source.artifact, lasting=False)._session
        zeros = {
            spec.name: np.zeros(self._buffers[spec.name][1], HOST_DTYPES[spec.dtype])
            for spec in context._plan.inputs
        }
        names = [spec.name for spec in context._plan.outputs]
        for name, value in zip(names, session.run(names, zeros), strict=True):
            self._buffers[name] = (self._buffers[name][0], value.shape)

    def _bind(self) -> Any:
        session = _session(self._artifact, lasting=self._lasting)
        buffers = {
            name: Buffer(
                device.storage(self._addresses[name], num_bytes(dtype, shape)) or 0,
                dtype,
                shape,
                None,
            )
            for name, (dtype, shape) in self._buffers.items()
        }
        inputs = {name: buffers.pop(name) for name in self._inputs}
        return session.bind(inputs, buffers)

    def _spoil_arena(self) -> None:
        if self._arena[1] and (storage := device.storage(*self._arena)):
            ctypes.memset(storage, _POISON, self._arena[1])


def _play(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    play = method()
    assert play is not None, "a context owns memory, without which its runs are refused"
    play()


def _session(artifact: Artifact, *, lasting: bool) -> Any:
    """The graph as the backend ``onnxruntime`` opens it, so that the bits are the same."""
    key = (artifact.path, lasting)
    if key not in _SESSIONS:
        provider = (onnxruntime.CPU, dict[str, str]())
        backend = onnxruntime.OnnxRuntime("kernels", HostMemory(), provider, 1)
        _SESSIONS[key] = backend.open(artifact, lasting=lasting)
    return _SESSIONS[key]


_SESSIONS: Final[dict[Any, Any]] = {}


@functools.cache
def _times(log: Path) -> list[tuple[str, float]]:
    """Invented milliseconds of the kernels of a plan, each longer than the one before it."""
    kernels = plan_table.read(log).kernels
    return [(kernel.name, (1 + index) / 1024) for index, kernel in enumerate(kernels)]


def _give_back(name: str, addresses: list[int]) -> None:
    if any(device.is_used(address) for address in addresses):
        device.violation(f"a context of {name} is destroyed while it runs")
    for address in addresses:
        device.free(address)
