"""The graphs of a variant: opened once, run in one place."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence

from sana_rt import graph_names
from sana_rt.bundle import Bundle
from sana_rt.errors import ManifestReferenceError, UsageError
from sana_rt.manifest import DimRange, Graph, Plan
from sana_rt.runtime.backends.base import (
    Artifact,
    Backend,
    Binding,
    Command,
    Context,
    Entry,
    Program,
)
from sana_rt.runtime.backends.buffers import Buffer
from sana_rt.runtime.observers import Observer


class Graphs:
    """Opens graphs on a backend and runs them for one player at a time.

    ``observers`` see every run; where there are any, programs run command by command.
    """

    def __init__(
        self, bundle: Bundle, variant: str, backend: Backend, observers: Sequence[Observer] = ()
    ) -> None:
        self.variant = variant
        self.signatures = backend.artifacts(bundle.manifest.with_current_plans()[variant])
        self.decoder = bundle.manifest.variant(variant).decoder
        self.memory = backend.memory
        self._bundle = bundle
        self._backend = backend
        self._always = tuple(observers)
        self._observers = self._always
        self._player: object = None
        self._opened: dict[str, Context] = {}
        self._sizes: dict[str, DimRange] = {}
        weakref.finalize(self, backend.close)

    @property
    def opened(self) -> tuple[str, ...]:
        """The names of the graphs that are loaded."""
        return tuple(self._opened)

    def signature(self, name: str) -> Entry:
        """What is opened for a graph: its files, inputs and outputs."""
        if name not in self.signatures:
            raise ManifestReferenceError(
                f"The variant {self.variant!r} has no graph {name!r}.",
                expected=f"one of {sorted(self.signatures)}.",
                remedy="export the checkpoint again.",
            )
        return self.signatures[name]

    def activation_bytes(self, names: Sequence[str]) -> int | None:
        """See :meth:`Backend.activation_bytes`."""
        return self._backend.activation_bytes([self.signature(name) for name in names])

    @property
    def context_bytes(self) -> int:
        """See :attr:`Backend.context_bytes`."""
        return self._backend.context_bytes

    def trim(self) -> None:
        """See :meth:`Backend.trim`."""
        self._backend.trim()

    def serve(self, sizes: Mapping[str, DimRange]) -> None:
        """Run with these ``sizes`` of dimensions from here on; no binding may be used any more."""
        if not self.serves(sizes):
            for name in self.opened:
                self.close(name)
        self._sizes = dict(sizes)

    def serves(self, sizes: Mapping[str, DimRange]) -> bool:
        """Whether what is open may run with these ``sizes`` of dimensions."""
        return not self._backend.specializes or sizes == self._sizes

    def check_sizes(self, names: Iterable[str], sizes: Mapping[str, DimRange]) -> None:
        """Raise :class:`ProfileError` if a plan does not accept the ``sizes`` of dimensions."""
        remedy = "build the plans for these sizes: sana-rt build BUNDLE --variant "
        remedy += f"{self.variant} --workload WORKLOAD, or ask for another size or length."
        for name in names:
            entry = self.signature(name)
            if isinstance(entry, Plan):
                entry.check_holds(f"The plan of {name}", _own(name, sizes), remedy)

    def open(self, name: str, *, lasting: bool = True) -> Context:
        """Load a graph, unless it is; see :meth:`Backend.open`.

        Raises :class:`BundleFileError` where its file is not what the manifest says.
        """
        if name not in self._opened:
            entry = self.signature(name)
            file = self._bundle.manifest.file(entry.path)
            path = self._bundle.path(entry.path)
            if isinstance(entry, Graph):
                self._bundle.check_onnx(entry)
            sizes = _own(name, self._sizes)
            artifact = Artifact(name, entry, path, file.sha256, self.variant, sizes)
            self._opened[name] = self._backend.open(artifact, lasting=lasting)
        return self._opened[name]

    def loaded(self) -> None:
        """See :meth:`Backend.loaded`."""
        self._backend.loaded()

    def close(self, name: str) -> None:
        """Give a graph's memory back; no binding of it may be used any more."""
        if name in self._opened:
            self._opened.pop(name).close()

    def close_all(self) -> None:
        """Give back all graphs and the device."""
        self._player = None
        for name in self.opened:
            self.close(name)
        self._backend.close()

    def bind(
        self, name: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]
    ) -> Binding:
        """Fix the buffers of a graph; see :meth:`Context.bind`."""
        return self.open(name).bind(inputs, outputs)

    def program(self, *commands: Command) -> Program:
        """A sequence to :meth:`run` again and again; see :meth:`Backend.program`."""
        return self._backend.program(commands)

    def take_over(self, player: object, *observers: Observer) -> None:
        """From now on ``player`` runs graphs, and its own observers see them as well."""
        self._player = player
        self._observers = (*self._always, *observers)

    def begin(self, player: object, moment: str) -> None:
        """Say in words what ``player`` does next.

        Raises:
            UsageError: another player took over, whose clip the buffers hold, or all is closed.
        """
        if self._player is not player:
            raise UsageError(
                "Another clip was started in this session, or the session was closed.",
                expected="one clip at a time.",
                remedy="finish a clip first, or open a second session.",
            )
        self.memory.begin(moment)
        for observer in self._observers:
            observer.begin(moment)

    def run(self, work: Program | Binding) -> None:
        """Run a program, or a single graph."""
        if not self._observers:
            work.run()
            return
        for command in work.commands if isinstance(work, Program) else (work,):
            self._observe(command)

    def _observe(self, command: Command) -> None:
        if not isinstance(command, Binding):
            command.run()
            return
        for observer in self._observers:
            observer.before(command, self.memory)
        command.run()
        for observer in self._observers:
            observer.after(command, self.memory)


def _own(name: str, sizes: Mapping[str, DimRange]) -> Mapping[str, DimRange]:
    """The sizes that a graph sees: some see one sample of a batch."""
    return {**sizes, "batch": DimRange.fixed(1)} if graph_names.is_single(name) else sizes
