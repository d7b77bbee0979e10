"""What a backend is: artifacts opened on one device, and programs of their runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sana_rt.errors import BindingError
from sana_rt.manifest import DimRange, Graph, Plan, Variant
from sana_rt.runtime.backends.buffers import Buffer, Memory
from sana_rt.tensors import TensorSpec, unify

#: What the manifest says of an artifact; both have the inputs and outputs of the graph.
Entry = Graph | Plan

#: Kernels in the order in which a library tells their times, with their seconds.
KernelTimes = list[tuple[str, float]]

#: An allowance for what TensorRT keeps on the device for an opened plan, beside weights and
#: activations, such as compiled kernels. A guess: it has not been measured on a card.
PLAN_CONTEXT_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class Artifact:
    """A file that a backend opens: the graph called ``name``, or a plan of it.

    ``sha256`` is what the manifest lists, for files that are programs; ``sizes`` are those of the
    named dimensions that it will run with.
    """

    name: str
    entry: Entry
    path: Path
    sha256: str = ""
    variant: str = ""
    sizes: Mapping[str, DimRange] = field(default_factory=dict)


@dataclass(frozen=True)
class BackendOptions:
    """How a backend runs: CPU ``threads`` (None: all), and on a GPU whether steps are captured
    as CUDA graphs, and the seconds that it may take to answer.
    """

    threads: int | None = None
    cuda_graph: bool = True
    timeout: float = 600.0


DEFAULT_OPTIONS: Final = BackendOptions()


@dataclass(frozen=True)
class Offers:
    """The variants that a backend plays, the preferred one first, and why it plays no other."""

    playable: tuple[str, ...]
    refusals: Mapping[str, str]  # by variant


class Command(ABC):
    """One entry of a program: a graph on its buffers, a copy, or a clear."""

    @abstractmethod
    def run(self) -> None:
        """Do it once; later work on the device sees the result."""


class Binding(Command):
    """A graph with a buffer on every input and output; it can run any number of times."""

    def __init__(
        self, graph: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]
    ) -> None:
        self.graph = graph
        self.inputs = dict(inputs)  # keeps their memory alive where only addresses are bound
        self.outputs = dict(outputs)

    def kernel_times(self) -> KernelTimes:
        """Run once more, on the same inputs, and wait: how long each kernel took.

        Empty where the backend cannot tell. Afterwards a run may take longer than it did.
        """
        return []


@dataclass(frozen=True)
class Copy(Command):
    """A copy between two buffers of one shape on the device."""

    memory: Memory
    destination: Buffer
    source: Buffer

    def run(self) -> None:
        """Copy."""
        self.memory.copy(self.destination, self.source)


@dataclass(frozen=True)
class Clear(Command):
    """A buffer that becomes zeros."""

    memory: Memory
    buffer: Buffer

    def run(self) -> None:
        """Fill the buffer with zeros."""
        self.memory.clear(self.buffer)


class Program:
    """A fixed sequence of commands on fixed buffers.

    A run depends on nothing but the contents of buffers, so that a backend may record the
    commands once (a CUDA graph) and replay them.
    """

    def __init__(self, commands: Iterable[Command]) -> None:
        self.commands = tuple(commands)

    def run(self) -> None:
        """Run the commands in order."""
        for command in self.commands:
            command.run()


class Context(ABC):
    """An opened artifact."""

    def __init__(self, artifact: Artifact) -> None:
        self.name = artifact.name
        self.entry = artifact.entry

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Binding:
        """Check the buffers against the graph's signature and fix them.

        Raises:
            BindingError: a name is missing or unknown, a dtype differs, the shapes give a named
                dimension two values, or an output overlaps another buffer.
        """
        dims: dict[str, int] = {}
        _check_buffers(f"input of {self.name}", self.entry.inputs, inputs, dims)
        _check_buffers(f"output of {self.name}", self.entry.outputs, outputs, dims)
        _check_overlap(self.name, inputs, outputs)
        return self._bind(inputs, outputs)

    def close(self) -> None:  # noqa: B027 (most give it back with their last binding)
        """Give its memory back; no binding of it can run any more."""

    @abstractmethod
    def _bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Binding: ...


class Backend(ABC):
    """A way to run graphs on one device.

    ``context_bytes`` are an allowance for what an opened artifact keeps on the device for itself,
    beside its weights; how much that is can only be seen when it is open. What one that
    ``specializes`` opens runs with the sizes of its artifact only.
    """

    context_bytes = 0
    specializes = False

    def __init__(self, name: str, memory: Memory) -> None:
        self.name = name
        self.memory = memory

    def artifacts(self, variant: Variant) -> Mapping[str, Entry]:
        """What it opens for each graph of a variant that it offers: here, the graph itself."""
        return variant.graphs

    def check(self, artifact: Artifact) -> None:  # noqa: B027 (most see it when they open it)
        """Look at the beginning of an artifact's file, without loading it.

        Raises an error of :meth:`open` where it is certain that it could not be opened here.
        """

    @abstractmethod
    def open(self, artifact: Artifact, *, lasting: bool = True) -> Context:
        """Load an artifact from its file.

        One that is not ``lasting`` runs a few times and may be closed: it should be quick to
        load and leave nothing behind, even if it runs more slowly.

        Raises:
            BackendError: the backend cannot run it; the message says why.
        """

    def program(self, commands: Iterable[Command]) -> Program:
        """A program of bindings of this backend; here it runs them one by one."""
        return Program(commands)

    def loaded(self) -> None:  # noqa: B027 (most load nothing that could be kept)
        """All that a clip runs is open and bound: what took long may be kept for the next time."""

    def activation_bytes(self, entries: Iterable[Entry]) -> int | None:
        """Memory for activations that these share, or None if it is sized while they run."""
        del entries
        return None

    def trim(self) -> None:  # noqa: B027 (most hold nothing between artifacts)
        """Give back memory that only artifacts used which are closed by now."""

    def close(self) -> None:
        """Give back what the device holds for it; afterwards nothing of it can be used."""
        self.memory.close()


@dataclass(frozen=True)
class Candidate:
    """A backend that is not open yet: what it would play, which needs no device, and its opening.

    Opening raises :class:`BackendError` where it cannot work, and leaves nothing behind.
    """

    offers: Callable[[Mapping[str, Variant]], Offers]
    open: Callable[[BackendOptions], Backend]


def _check_buffers(
    what: str,
    specs: tuple[TensorSpec, ...],
    buffers: Mapping[str, Buffer],
    dims: dict[str, int],
) -> None:
    names = {spec.name for spec in specs}
    if names != set(buffers):
        raise BindingError(
            f"Every {what} needs a buffer, but buffers were given for {sorted(buffers)}.",
            expected=f"exactly {sorted(names)}.",
        )
    for spec in specs:
        buffer = buffers[spec.name]
        if buffer.dtype != spec.dtype:
            raise BindingError(
                f"The {what} called {spec.name!r} was given {buffer.dtype}.",
                expected=f"{spec.dtype}.",
            )
        unify(spec, buffer.shape, dims)


def _check_overlap(graph: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
    """A graph may write an output before it has read all inputs."""
    everything = [*inputs.items(), *outputs.items()]
    for name, output in outputs.items():
        for other, buffer in everything:
            if (
                other != name
                and output.address < buffer.address + buffer.nbytes
                and buffer.address < output.address + output.nbytes
            ):
                raise BindingError(
                    f"Output {name!r} of {graph} shares memory with {other!r}.",
                    expected="outputs in memory of their own.",
                )
