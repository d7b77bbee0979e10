"""TensorRT: plans on an NVIDIA GPU, each step one CUDA graph. Not run on hardware yet."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sana_rt.manifest import Plan, Variant
from sana_rt.runtime.backends import plan_file, plan_offers, runtime_cache
from sana_rt.runtime.backends.arena import Arena
from sana_rt.runtime.backends.base import (
    PLAN_CONTEXT_BYTES,
    Artifact,
    Backend,
    BackendOptions,
    Command,
    Context,
    Entry,
    Program,
)
from sana_rt.runtime.backends.cuda import CudaMemory
from sana_rt.runtime.backends.cuda_graph import CapturedProgram, NotCapturedWarning
from sana_rt.runtime.backends.plan_context import Place, PlanContext
from sana_rt.runtime.backends.runtime_cache import RuntimeCache
from sana_rt.runtime.backends.trt_api import Flavour, Library

NAME: Final = "tensorrt"


class TensorRT(Backend):
    """Plans of both flavours; all contexts share the device's stream and one arena."""

    context_bytes = PLAN_CONTEXT_BYTES

    def __init__(self, options: BackendOptions) -> None:
        memory = CudaMemory(options.timeout)
        super().__init__(NAME, memory)
        self._device = memory.device
        self._captures, self._told = options.cuda_graph, False
        self._arena = Arena(memory)
        self._loaders: dict[Flavour, _Loader] = {}
        self._contexts: weakref.WeakSet[PlanContext] = weakref.WeakSet()
        self._programs: weakref.WeakSet[CapturedProgram] = weakref.WeakSet()

    def artifacts(self, variant: Variant) -> Mapping[str, Entry]:
        """The plans for the card."""
        return plan_offers.plans(variant, self._device.card)

    def check(self, artifact: Artifact) -> None:
        """Ask TensorRT about a plan's header; the file's hash is looked at when it is opened."""
        plan = artifact.entry
        assert isinstance(plan, Plan)
        self._loader(plan.flavour).check(artifact, plan, plan_file.read_header(artifact))

    def open(self, artifact: Artifact, *, lasting: bool = True) -> Context:
        """Load a plan, and compile its kernels for the card unless they are kept from before.

        One that is not ``lasting`` uses kernels that serve all shapes, so that a prompt of another
        length compiles nothing.

        Raises:
            BundleFileError: the file is not the one that the manifest lists.
            PlanVersionError, PlanCardError, PlanDriverError, PlanFormatError: it does not run here.
            DeviceMemoryError: its weights do not fit.
        """
        plan = artifact.entry
        assert isinstance(plan, Plan)
        context = self._loader(plan.flavour).load(artifact, plan, lasting=lasting)
        self._contexts.add(context)
        self._arena.tenants.add(context)
        return context

    def program(self, commands: Iterable[Command]) -> Program:
        """A program that is captured as one CUDA graph, unless that is switched off."""
        if not self._captures:
            return Program(commands)
        program = CapturedProgram(commands, self._device, self._tell)
        self._programs.add(program)
        self._arena.tenants.add(program)
        return program

    def activation_bytes(self, entries: Iterable[Entry]) -> int | None:
        """What the largest of the plans needs at its largest sizes."""
        return max((each.activation_bytes for each in entries if isinstance(each, Plan)), default=0)

    def loaded(self) -> None:
        """Keep what was compiled for the next start."""
        for loader in self._loaders.values():
            loader.save()

    def trim(self) -> None:
        """Let the arena be no larger than the open plans need it."""
        needed = max((each.needed_bytes for each in self._contexts), default=0)
        if needed < self._arena.nbytes:
            self._arena.resize(needed)

    def close(self) -> None:
        """Destroy graphs, contexts and engines, runtimes, memory and stream, in this order."""
        for program in list(self._programs):
            program.forget()
        for context in list(self._contexts):
            context.close()
        for loader in self._loaders.values():
            loader.close()
        self._loaders.clear()
        self._arena.resize(0)
        super().close()

    def _loader(self, flavour: Flavour) -> _Loader:
        if flavour not in self._loaders:
            self._loaders[flavour] = _Loader(Place(Library(flavour), self._device, self._arena))
        return self._loaders[flavour]

    def _tell(self, text: str) -> None:
        """Why something cannot be captured; the first reason is enough."""
        if not self._told:
            self._told = True
            warnings.warn(NotCapturedWarning(text), stacklevel=2)


class _Loader:
    """A library's runtime on the device, and the kernels that were compiled before."""

    def __init__(self, place: Place) -> None:
        library, device = place.library, place.device
        self._place = place
        self._runtime = library.runtime()
        self._cache: RuntimeCache | None = None
        if library.capabilities.compiles_at_load:
            path = runtime_cache.path(device.card, library)
            self._cache = RuntimeCache(path, device.card)
        device.immortalize_if_lost(self)

    def load(self, artifact: Artifact, plan: Plan, *, lasting: bool) -> PlanContext:
        """Check a plan's file, and make an engine and its first context of it."""
        engine = self._engine(artifact, plan)
        config = self._place.library.config(engine, specialized=lasting)
        if self._cache is not None:
            self._cache.attach(config)
        return PlanContext(artifact, self._place, engine, config)

    def check(self, artifact: Artifact, plan: Plan, data: bytes) -> None:
        """Raise the reason why a plan, of which the header is enough, does not run here."""
        library, card = self._place.library, self._place.device.card
        validity = library.validity(self._runtime, data)
        plan_file.check(artifact, plan, validity, library, card)

    def _engine(self, artifact: Artifact, plan: Plan) -> Any:
        """The plan's weights on the device; the file's bytes are gone then."""
        data = plan_file.read(artifact)
        self.check(artifact, plan, data)
        self._place.device.graph = artifact.name
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._place.failure(f"load the plan of {artifact.name}")
        plan_file.check_names(artifact, engine)
        return engine

    def save(self) -> None:
        """Write what was compiled, if anything was."""
        if self._cache is not None:
            self._cache.save()

    def close(self) -> None:
        """Save, and give back the runtime; its engines are gone."""
        if not self._place.device.lost:
            self.save()
            self._cache = self._runtime = None
