"""A program as one CUDA graph: run once, captured, and launched from then on."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from cuda.bindings import driver as cuda

from sana_rt.errors import BackendError, DeviceMemoryError
from sana_rt.runtime.backends.base import Binding, Command, Program
from sana_rt.runtime.backends.cuda_device import Device
from sana_rt.runtime.backends.plan_context import PlanBinding


class NotCapturedWarning(UserWarning):
    """A step whose graphs are launched one by one, because it cannot be captured."""


class CapturedProgram(Program):
    """Commands that are captured when they have run: launching them costs the host next to nothing.

    The first run warms up: what a plan does only once must not be in the graph. ``tell`` is called
    if they cannot be captured; they are then run one by one.
    """

    def __init__(
        self, commands: Iterable[Command], device: Device, tell: Callable[[str], None]
    ) -> None:
        super().__init__(commands)
        self._device, self._tell = device, tell
        self._name = _name(self.commands)
        self._refused = False
        self._graph: Any = None
        self._destroy: weakref.finalize[..., Any] | None = None

    def run(self) -> None:
        """Launch the graph; or run the commands, and capture them for the next time."""
        if self._graph is not None:
            self._device.graph = self._name
            self._device.launch(self._graph)
            return
        super().run()
        if not self._refused:
            self._capture()

    def forget(self) -> None:
        """Destroy the graph; the next run warms up again."""
        if self._destroy is not None:
            self._destroy()
        self._graph = self._destroy = None

    def arena_moved(self) -> None:
        """The graph has its old address."""
        self.forget()

    def _capture(self) -> None:
        bindings = (each for each in self.commands if isinstance(each, PlanBinding))
        reason = next(filter(None, (each.uncapturable for each in bindings)), "")
        try:
            if not reason:
                self._graph = self._device.capture(super().run)
        except (BackendError, DeviceMemoryError) as error:
            self._device.synchronize()  # raises if it is the device that is gone
            reason = error.happened
        if reason:
            self._refused = True
            self._tell(f"There is no CUDA graph of {self._name}, launched one by one: {reason}")
        else:
            self._destroy = self._device.keep(self, cuda.cuGraphExecDestroy, self._graph)


def _name(commands: tuple[Command, ...]) -> str:
    graphs = [each.graph for each in commands if isinstance(each, Binding)]
    return graphs[0] if len(graphs) == 1 else f"{graphs[0]} to {graphs[-1]}"
