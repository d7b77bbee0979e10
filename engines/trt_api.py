"""TensorRT-RTX and TensorRT behind one adapter: the only importer of either on this side.

What the two share is used under the same names; where they differ, :data:`FLAVOURS` says so as
data and an option that a flavour cannot honour is refused.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from sana_rt import interrupts
from sana_rt.engines.cards import CURRENT, TARGETS, Target
from sana_rt.errors import BuildError, MissingDependencyError, TargetError
from sana_rt.interrupts import Deferred

Flavour = Literal["rtx", "trt"]
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # min, opt, max


@dataclass(frozen=True)
class Capabilities:
    """What a flavour can do."""

    module: str
    install: str
    targets: tuple[str, ...]
    builds_without_gpu: bool
    user_allocation: bool  # plans that allocate nothing, so that CUDA graphs can capture them


FLAVOURS: Final[dict[Flavour, Capabilities]] = {
    "rtx": Capabilities(
        module="tensorrt_rtx",
        install='pip install "sana-rt[build]"',
        targets=tuple(TARGETS),
        builds_without_gpu=True,
        user_allocation=True,
    ),
    "trt": Capabilities(
        module="tensorrt",
        install='pip install "tensorrt-cu13>=11.4,<12"',
        targets=(CURRENT,),
        builds_without_gpu=False,
        user_allocation=False,
    ),
}


@dataclass(frozen=True)
class BuildRequest:
    """A graph, the card to build for, and min, opt and max shape of every input by name."""

    graph: Path
    target: Target
    shapes: Mapping[str, Shapes]
    tf32: bool = False


@dataclass(frozen=True)
class Refusal:
    """A node that the parser could not import."""

    node: str
    operator: str
    reason: str


class RefusedNodesError(Exception):
    """The parser stopped; the builder turns this into a message that names the module."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        self.refusals = refusals
        super().__init__(f"{len(refusals)} nodes refused")


_SEVERE: Final = ("ERROR", "INTERNAL_ERROR")
# Without a driver every error message ends in one about the driver, which a build does not need.
_NO_DRIVER: Final = "[checkMacros.cpp::catchCudaError"


@dataclass
class BuildLog:
    """Every message of a build, in order."""

    messages: list[tuple[str, str]] = field(default_factory=list)  # severity, text

    @property
    def text(self) -> str:
        """The log as it is kept beside the plan."""
        return "".join(f"[{severity}] {message}\n" for severity, message in self.messages)

    @property
    def errors(self) -> list[str]:
        """The messages of severity error and above."""
        failed = (text for severity, text in self.messages if severity in _SEVERE)
        return [cause for text in failed if (cause := text.partition(_NO_DRIVER)[0].strip())]


class TensorRT:
    """One flavour, imported."""

    def __init__(self, flavour: Flavour) -> None:
        """Import ``flavour`` or raise :class:`MissingDependencyError` with the command to run."""
        self.flavour = flavour
        self.capabilities = FLAVOURS[flavour]
        try:
            self._api: Any = importlib.import_module(self.capabilities.module)
        except ImportError as error:
            raise MissingDependencyError(
                f"The flavour {flavour!r} needs the module {self.capabilities.module!r}: {error}.",
                expected="a flavour that is installed.",
                remedy=self.capabilities.install,
            ) from error

    @property
    def version(self) -> str:
        """The version of the library; a plan runs with the version that built it."""
        return str(self._api.__version__)

    def target(self, name: str) -> Target:
        """The target called ``name`` if this flavour builds for it."""
        if name not in self.capabilities.targets:
            raise TargetError(
                f"The flavour {self.flavour!r} does not build for {name!r}.",
                expected=f"one of {', '.join(self.capabilities.targets)}.",
                remedy="build ahead of time with --flavour rtx, or with --flavour trt "
                f"--target {CURRENT} on a machine that has the card.",
            )
        return TARGETS[name]

    def build(
        self,
        request: BuildRequest,
        write: Callable[[bytes], int],
        log: BuildLog,
        progress: Callable[[str], None],
    ) -> None:
        """Compile a graph and hand the plan to ``write`` piece by piece; one build at a time.

        ``log`` is filled even if the build fails; ``progress`` is called with the name of
        every phase. An exception of ``write`` or ``progress`` stops the build and is raised.

        Raises:
            RefusedNodesError: the graph has nodes that cannot be imported.
            BuildError: anything else that TensorRT refuses.
        """
        with interrupts.deferred() as held:
            self._build(request, log, _Callbacks(self._api, write, progress, held))

    def _build(self, request: BuildRequest, log: BuildLog, callbacks: _Callbacks) -> None:
        logger = _logger(self.flavour)
        logger.log = log
        builder = self._api.Builder(logger.interface)
        network = builder.create_network(1 << int(_flag(self._api, "STRONGLY_TYPED")))
        parser = self._api.OnnxParser(network, logger.interface)
        if not parser.parse_from_file(str(request.graph)):
            raise RefusedNodesError(_refusals(parser))
        config = self._config(builder, request)
        config.progress_monitor = callbacks.monitor
        done = builder.build_serialized_network_to_stream(network, config, callbacks.writer)
        callbacks.raise_first()
        if not done:
            raise BuildError(
                f"{self.capabilities.module} {self.version} did not build {request.graph.name}: "
                + " ".join(log.errors),
                expected="a graph, shapes and target that it accepts.",
                remedy="read the complete build log.",
            )

    def _config(self, builder: Any, request: BuildRequest) -> Any:
        api, config = self._api, builder.create_builder_config()
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # prints the layer table
        config.max_aux_streams = 0  # a step is captured on one stream, and others need memory
        if self.capabilities.builds_without_gpu:
            config.num_compute_capabilities = 1
            member = getattr(api.ComputeCapability, request.target.member)
            config.set_compute_capability(member, 0)
        if self.capabilities.user_allocation:
            config.set_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if not request.tf32:
            config.clear_flag(api.BuilderFlag.TF32)
        profile = builder.create_optimization_profile()
        for name, shapes in request.shapes.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
        return config


def _flag(api: Any, name: str) -> Any:
    return getattr(api.NetworkDefinitionCreationFlag, name)


def _refusals(parser: Any) -> tuple[Refusal, ...]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return tuple(
        Refusal(error.node_name(), error.node_operator(), error.desc()) for error in errors
    )


class _Callbacks:
    """What TensorRT calls while it builds, as instances of its interfaces.

    No exception may cross its C++ frames. The first one is kept, the build is asked to stop,
    and :meth:`raise_first` raises it when the build has returned. An interrupt, which would be
    raised in any of the frames and lost, is ``held`` back and asks to stop, too.
    """

    def __init__(
        self,
        api: Any,
        write: Callable[[bytes], int],
        progress: Callable[[str], None],
        held: Deferred,
    ) -> None:
        self._held = held
        self.first: BaseException | None = None
        self.writer = _implement(api.IStreamWriter, write=self._guard(write, 0))
        self.monitor = _implement(
            api.IProgressMonitor,
            phase_start=self._guard(lambda name, _parent, _steps: progress(name), None),
            step_complete=self._guard(
                lambda _name, _step: self.first is None and not held.pending, False
            ),
            phase_finish=self._guard(lambda _name: None, None),
        )

    def raise_first(self) -> None:
        """Raise what the first failing callback raised, or the interrupt that came."""
        if self.first is not None:
            raise self.first
        self._held.check()

    def _guard(self, function: Callable[..., Any], stop: object) -> Callable[..., Any]:
        def guarded(*args: Any) -> Any:
            try:
                return function(*args)
            except BaseException as error:  # noqa: BLE001 - raised again by raise_first
                self.first = self.first or error
                return stop

        return guarded


class _Logger:
    """Hands TensorRT's messages to the log of the build that is running.

    There is one a process, and it is never collected: TensorRT keeps the first logger it is
    given for as long as any object made with it lives, and ignores all others until then.
    """

    def __init__(self, api: Any) -> None:
        self.log = BuildLog()
        self.interface = _implement(api.ILogger, log=self._receive)

    def _receive(self, level: Any, text: str) -> None:
        self.log.messages.append((level.name, text))


@functools.cache
def _logger(flavour: Flavour) -> _Logger:
    return _Logger(importlib.import_module(FLAVOURS[flavour].module))


def _implement(interface: Any, **methods: Callable[..., Any]) -> Any:
    """An instance of ``interface`` whose methods are plain functions without ``self``.

    Its class is made here because the base is known only once the flavour is.
    """
    bound = {name: staticmethod(method) for name, method in methods.items()}
    return type(interface.__name__, (interface,), bound)()
