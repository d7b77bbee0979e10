"""A plan on the card: its engine, and an execution context for each binding."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sana_rt.errors import BackendError, BindingError, SanaRTError
from sana_rt.manifest import DimRange, Plan
from sana_rt.runtime.backends.arena import Arena
from sana_rt.runtime.backends.base import Artifact, Binding, Context, KernelTimes
from sana_rt.runtime.backends.buffers import Buffer
from sana_rt.runtime.backends.cuda_device import Device
from sana_rt.runtime.backends.plan_file import rebuild
from sana_rt.runtime.backends.trt_api import Library
from sana_rt.tensors import unify

_ALIGNMENT: Final = 256  # bytes, of every address that TensorRT is given
_PROFILE: Final = 0  # plans have one
_OUT_OF_MEMORY: Final = ("out of memory", "outofmemory")  # as TensorRT words it

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Place:
    """Where plans run: the library that plays them, the device, and the arena that they share."""

    library: Library
    device: Device
    arena: Arena

    def failure(self, what: str) -> SanaRTError:
        """The error for what the library refused to do; raises what the device reports itself."""
        complaints = self.library.complaints() or "it does not say why."
        self.device.check()
        if any(words in complaints.lower() for words in _OUT_OF_MEMORY):
            return self.device.out_of_memory(f"what {self.library} needs to {what}")
        return BackendError(f"{self.library} did not {what}{self.device.at()}: {complaints}")


class Execution:
    """An execution context, with the shapes and addresses that it was given last."""

    def __init__(self, context: Any, device: Device) -> None:
        self._context, self._device = context, device
        self.shapes: Shapes = {}
        self.needed_bytes = 0
        _done(context.set_optimization_profile_async(_PROFILE, device.stream), "a profile")

    def fit(self, shapes: Shapes) -> None:
        """Take the shapes of all inputs, from which follows the memory that a run needs."""
        if shapes == self.shapes:
            return
        self.shapes = {}
        for name, shape in shapes.items():
            _done(self._context.set_input_shape(name, shape), f"the shape {shape} of {name!r}")
        if missing := self._context.infer_shapes():
            raise BindingError(f"TensorRT does not know the shapes of {missing}.")
        self.needed_bytes = max(1, self._context.update_device_memory_size_for_shapes())
        self.shapes = shapes

    def house(self, arena: Arena) -> None:
        """Run in ``arena`` from now on."""
        self._context.set_device_memory(arena.address, arena.nbytes)

    def point(self, buffers: Mapping[str, Buffer]) -> None:
        """Read and write these buffers from now on."""
        for name, buffer in buffers.items():
            _done(self._context.set_tensor_address(name, buffer.address), f"the buffer of {name!r}")

    def close(self) -> None:
        """Destroy the context."""
        self._context = None

    def run(self) -> bool:
        """Give a run to the stream; False if TensorRT refuses."""
        return bool(self._context.execute_async_v3(self._device.stream))

    def attach(self, profiler: Any) -> None:
        """Let ``profiler`` be told of runs, each when :meth:`report` asks for it.

        A run would otherwise wait for its own end, inside of a call that cannot be given up.
        """
        self._context.enqueue_emits_profile = False
        self._context.profiler = profiler

    def report(self) -> bool:
        """Tell the profiler of the run that has ended; False if TensorRT refuses."""
        return bool(self._context.report_to_profiler())

    @property
    def is_capturable(self) -> bool:
        """Whether TensorRT says that a CUDA graph can capture a run."""
        return bool(self._context.is_stream_capturable(self._device.stream))


class PlanContext(Context):
    """An engine; its bindings have an execution context each, since captured runs are tied to one.

    One that no binding has any more is taken by the next: making one takes long, because it
    compiles kernels for the card. The first is made when the plan is opened.
    """

    def __init__(self, artifact: Artifact, place: Place, engine: Any, config: Any) -> None:
        super().__init__(artifact)
        assert isinstance(artifact.entry, Plan)
        self._artifact, self._plan, self._place = artifact, artifact.entry, place
        self._engine, self._config = engine, config
        self._executions: list[Execution] = []
        self._free: list[Execution] = [self._make()]
        place.device.immortalize_if_lost(self)

    @property
    def needed_bytes(self) -> int:
        """Activations of its bindings."""
        return max((each.needed_bytes for each in self._executions), default=0)

    def arena_moved(self) -> None:
        """Let all contexts run where the arena is now.

        It is too small for some where it could not grow; those are bound again before they run.
        """
        arena = self._place.arena
        for execution in self._executions:
            if execution.shapes and execution.needed_bytes <= arena.nbytes:
                execution.house(arena)

    def close(self) -> None:
        """Destroy the contexts, then the engine, when the stream has no work for them."""
        if not self._place.device.settle():
            return
        for execution in self._executions:
            execution.close()
        self._executions.clear()
        self._free.clear()
        self._config = self._engine = None

    def _bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Binding:
        self._check(inputs, outputs)
        shapes = {name: buffer.shape for name, buffer in inputs.items()}
        execution = self._take(shapes)
        try:
            execution.fit(shapes)
            self._place.arena.reserve(execution.needed_bytes)
            execution.house(self._place.arena)
            execution.point({**inputs, **outputs})
        except BaseException:
            self._free.append(execution)
            raise
        binding = PlanBinding(self._artifact, inputs, outputs, execution, self._place)
        weakref.finalize(binding, self._free.append, execution)
        return binding

    def _take(self, shapes: Shapes) -> Execution:
        """A context that is free, rather one of these shapes, or a new one."""
        if not self._free:
            return self._make()
        self._place.device.synchronize()  # it may still be running for who had it
        same = (each for each in self._free if each.shapes == shapes)
        execution = next(same, self._free[-1])
        self._free.remove(execution)
        return execution

    def _make(self) -> Execution:
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise self._place.failure(f"make a context for {self.name}")
        execution = Execution(context, self._place.device)
        self._executions.append(execution)
        return execution

    def _check(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        dims: dict[str, int] = {}
        for spec in self.entry.inputs:
            unify(spec, inputs[spec.name].shape, dims)
        spans = {name: DimRange.fixed(size) for name, size in dims.items()}
        self._plan.check_holds(f"The plan of {self.name}", spans, rebuild(self._artifact))
        for name, buffer in (*inputs.items(), *outputs.items()):
            if buffer.address % _ALIGNMENT:
                raise BindingError(
                    f"The buffer of {name!r} of {self.name} is at {buffer.address:#x}.",
                    expected=f"a multiple of {_ALIGNMENT}, which TensorRT asks for.",
                )


class PlanBinding(Binding):
    """A plan on its buffers, in a context that is its own."""

    def __init__(
        self,
        artifact: Artifact,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        execution: Execution,
        place: Place,
    ) -> None:
        super().__init__(artifact.name, inputs, outputs)
        assert isinstance(artifact.entry, Plan)
        self._allocates = not artifact.entry.user_allocation
        self._execution, self._place = execution, place
        self._profiler: Any = None

    def kernel_times(self) -> KernelTimes:
        """What TensorRT's profiler is told of a run that is launched kernel by kernel."""
        if self._profiler is None:
            self._profiler = self._place.library.profiler()
            self._execution.attach(self._profiler)
        self._profiler.times.clear()
        self.run()
        self._place.device.synchronize()
        if not self._execution.report():
            raise self._place.failure(f"tell the times of the kernels of {self.graph}")
        return [(name, milliseconds / 1e3) for name, milliseconds in self._profiler.times]

    def run(self) -> None:
        """Give a run to the device's stream."""
        self._place.device.graph = self.graph
        if not self._execution.run():
            raise self._place.failure(f"run {self.graph}")

    @property
    def uncapturable(self) -> str:
        """Why a CUDA graph cannot capture it, as far as is known before trying."""
        if not self._place.library.capabilities.knows_capturable:
            return ""
        if self._allocates:
            return f"the plan of {self.graph} allocates memory while it runs"
        if not self._execution.is_capturable:
            return f"TensorRT says that {self.graph} cannot be captured"
        return ""


def _done(success: bool, what: str) -> None:
    if not success:
        raise BindingError(f"TensorRT does not take {what}.")
