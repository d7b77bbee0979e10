"""TensorRT-RTX and TensorRT behind one adapter: the only importer of either in the runtime.

What the two share is used under the same names; where they differ, :data:`FLAVOURS` says so as
data. Nothing of either has been run on hardware yet.
"""

from __future__ import annotations

import functools
import importlib
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Literal

from sana_rt.errors import MissingDependencyError

Flavour = Literal["rtx", "trt"]


@dataclass(frozen=True)
class Capabilities:
    """What a flavour can do at run time."""

    title: str
    module: str
    install: str
    compiles_at_load: bool  # kernels are compiled for the card when a plan is opened, and cached
    reads_headers: bool  # it says of a plan's first bytes whether it would run here
    knows_capturable: bool  # a context says whether a CUDA graph can capture it


FLAVOURS: Final[dict[Flavour, Capabilities]] = {
    "rtx": Capabilities(
        title="TensorRT-RTX",
        module="tensorrt_rtx",
        install='pip install "sana-rt[rtx]"',
        compiles_at_load=True,
        reads_headers=True,
        knows_capturable=True,
    ),
    "trt": Capabilities(
        title="TensorRT",
        module="tensorrt",
        install='pip install "tensorrt-cu13>=11.4,<12"',
        compiles_at_load=False,
        reads_headers=False,
        knows_capturable=False,
    ),
}


@dataclass(frozen=True)
class Validity:
    """What a library says of a plan's header; the ``reasons`` have TensorRT's names."""

    runs: bool
    is_slow: bool = False
    reasons: frozenset[str] = frozenset()


class Library:
    """One flavour, imported, with its messages at hand."""

    def __init__(self, flavour: Flavour) -> None:
        """Import ``flavour`` or raise :class:`MissingDependencyError` with the command to run."""
        self.flavour = flavour
        self.capabilities = FLAVOURS[flavour]
        try:
            self._api: Any = importlib.import_module(self.capabilities.module)
        except ImportError as error:
            raise MissingDependencyError(
                f"The module {self.capabilities.module!r}, which plays plans of the flavour "
                f"{flavour!r}, cannot be imported: {error}.",
                remedy=self.capabilities.install,
            ) from error

    def __str__(self) -> str:
        """For messages."""
        return f"{self.capabilities.title} {self.version}"

    @property
    def version(self) -> str:
        """The version of the library; a plan runs with the version that built it."""
        return str(self._api.__version__)

    def runtime(self) -> Any:
        """A new ``IRuntime`` on the current CUDA context."""
        return self._api.Runtime(_logger(self.flavour).interface)

    def validity(self, runtime: Any, plan: bytes) -> Validity:
        """Whether a plan, of which the header is enough, would run here: no is certain."""
        if not self.capabilities.reads_headers:
            return Validity(runs=True)
        verdict, mask = runtime.get_engine_validity(plan[: runtime.engine_header_size])
        found = self._api.EngineInvalidityDiagnostics.__members__
        reasons = frozenset(name for name, bit in found.items() if int(bit) & int(mask))
        kinds = self._api.EngineValidity
        return Validity(verdict != kinds.INVALID, verdict == kinds.SUBOPTIMAL, reasons)

    def config(self, engine: Any, *, specialized: bool) -> Any:
        """How an engine's contexts are made: in memory of ours, with no CUDA graphs of their own.

        ``specialized`` kernels are compiled for every shape before they run, so that a run can be
        captured and no run is slower than another; otherwise one kernel serves all shapes.
        """
        api, config = self._api, engine.create_runtime_config()
        strategy = api.ExecutionContextAllocationStrategy.USER_MANAGED
        config.set_execution_context_allocation_strategy(strategy)
        if self.capabilities.compiles_at_load:
            kinds = api.DynamicShapesKernelSpecializationStrategy
            kind = kinds.EAGER if specialized else kinds.NONE
            config.dynamic_shapes_kernel_specialization_strategy = kind
            config.cuda_graph_strategy = api.CudaGraphStrategy.DISABLED
        return config

    def profiler(self) -> Any:
        """An ``IProfiler`` that keeps what it is told: its ``times`` are names and milliseconds."""
        return _profiler_class(self._api)()

    def complaints(self) -> str:
        """The last errors that the library reported, which are then forgotten."""
        messages = _logger(self.flavour).errors
        text = " ".join(messages)
        messages.clear()
        return text


_SEVERE: Final = ("ERROR", "INTERNAL_ERROR")
_KEPT: Final = 4  # messages: one failure reports a few, the first of which says most


class _Logger:
    """Keeps TensorRT's last errors.

    There is one a process, and it is never collected: TensorRT keeps the first logger it is
    given for as long as any object made with it lives, and ignores all others until then.
    """

    def __init__(self, api: Any) -> None:
        self.errors: deque[str] = deque(maxlen=_KEPT)
        base = api.ILogger

        class Interface(base):  # type: ignore[misc, valid-type] # known when the flavour is
            def log(_self, severity: Any, text: str) -> None:  # noqa: N805
                if severity.name in _SEVERE:
                    self.errors.append(text.strip())

        self.interface = Interface()


@functools.cache
def _logger(flavour: Flavour) -> _Logger:
    return _Logger(importlib.import_module(FLAVOURS[flavour].module))


@functools.cache
def _profiler_class(api: Any) -> Any:
    base = api.IProfiler

    class Profiler(base):  # type: ignore[misc, valid-type] # known when the flavour is
        def __init__(self) -> None:
            base.__init__(self)  # as pybind11 asks for
            self.times: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, ms))

    return Profiler
