"""A program as one CUDA graph: run once, captured, and from then on launched."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from cuda.bindings import driver as cuda

from sana_rt.errors import BackendError, DeviceMemoryError
from sana_rt.runtime.backends.base import Binding, Command, Program
from sana_rt.runtime.backends.cuda_device import Device
from sana_rt.runtime.backends.plan_context import PlanBinding


class NotCapturedWarning(UserWarning):
    """A step that is played launch by launch, because it cannot be captured."""


class CapturedProgram(Program):
    """Commands that the second run captures: a launch of theirs costs the host next to nothing.

    The first run warms up: what a plan does only once must not be in the graph.
    """

    def __init__(self, commands: Iterable[Command], device: Device) -> None:
        super().__init__(commands)
        self._device = device
        self._name = _name(self.commands)
        self._is_warm = False
        self._refused = False
        self._graph: Any = None
        self._destroy: weakref.finalize[..., CapturedProgram] | None = None

    def run(self) -> None:
        """Launch the graph; or run the commands, where there is none yet or can be none."""
        if self._is_warm and self._graph is None and not self._refused:
            self._capture()
        self._device.graph = self._name
        if self._graph is not None:
            self._device.launch(self._graph)
        else:
            super().run()
            self._is_warm = True

    def forget(self) -> None:
        """Destroy the graph; the next run warms up again."""
        if self._destroy is not None:
            self._destroy()
        self._graph, self._destroy, self._is_warm = None, None, False

    def _capture(self) -> None:
        bindings = (each for each in self.commands if isinstance(each, PlanBinding))
        reason = next(filter(None, (each.uncapturable for each in bindings)), "")
        try:
            if not reason:
                self._graph = self._device.capture(super().run)
        except (BackendError, DeviceMemoryError) as error:
            reason = error.happened
        if reason:
            self._refused = True
            message = f"Without a CUDA graph, {self._name} are launched one by one: {reason}"
            warnings.warn(NotCapturedWarning(message), stacklevel=2)
        else:
            self._destroy = weakref.finalize(
                self, self._device.free, cuda.cuGraphExecDestroy, self._graph
            )


def _name(commands: tuple[Command, ...]) -> str:
    graphs = [each.graph for each in commands if isinstance(each, Binding)]
    return graphs[0] if len(graphs) == 1 else f"{graphs[0]} to {graphs[-1]}"
