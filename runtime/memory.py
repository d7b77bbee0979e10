"""Device memory, planned phase by phase from the manifest before the first byte is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from sana_rt.manifest import Plan
from sana_rt.runtime.backends.base import Entry
from sana_rt.tensors import Shape, num_bytes, resolve

WEIGHTS: Final = "weights"
ACTIVATIONS: Final = "activations"
CONTEXTS: Final = "execution contexts (allowance)"
NEEDED: Final = "needed"
STAGING: Final = "staging (pinned, on the host)"


@dataclass(frozen=True)
class Region:
    """A tensor to allocate; the named dimensions of ``shape`` are those of the plan.

    One that is ``carried`` keeps its values from chunk to chunk; one that is ``filled`` gets new
    ones from the host at every step.
    """

    name: str
    group: str
    dtype: str
    shape: Shape
    carried: bool = False
    filled: bool = False


def region(group: str, graph: Entry, tensor: str, name: str = "") -> Region:
    """Room for an input or output of ``graph``, called ``name`` or as the tensor is."""
    spec = next(spec for spec in (*graph.inputs, *graph.outputs) if spec.name == tensor)
    return Region(name or tensor, group, spec.dtype, spec.shape)


def single(one: Region) -> Region:
    """The same for a batch of one."""
    return replace(one, shape=tuple(1 if dim == "batch" else dim for dim in one.shape))


def stacked(one: Region, count: int) -> Region:
    """``count`` of them in a new first dimension."""
    return replace(one, shape=(count, *one.shape))


def carried(one: Region) -> Region:
    """The same, keeping its values from chunk to chunk."""
    return replace(one, carried=True)


def filled(one: Region) -> Region:
    """The same, filled from the host at every step."""
    return replace(one, filled=True)


@dataclass(frozen=True)
class Phase:
    """Graphs that run together: their weights by graph, their buffers, what they share.

    ``activation_bytes`` is None where the backend sizes them as it runs; ``expected_activations``
    are then what may be needed, where that decides between two ways. ``context_bytes`` are
    allowed for what each opened graph keeps for itself. Phases that ``recur`` take turns at every
    chunk of a block-causal model.
    """

    name: str
    weights: Mapping[str, int]
    regions: tuple[Region, ...] = ()
    activation_bytes: int | None = None
    context_bytes: int = 0
    recurs: bool = False
    expected_activations: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """A clip's memory on ``device``, as the backend is called, in the order of its phases.

    The first ``apart`` phases are loaded one after the other, each in the place of the one before;
    all later ones are there at the same time. A buffer lives as long as its phase is loaded; one
    that is carried, also while another phase is loaded that recurs.
    """

    device: str
    phases: tuple[Phase, ...]
    dims: Mapping[str, int]
    apart: int = 0
    staged: bool = False

    @cached_property
    def groups(self) -> tuple[tuple[Phase, ...], ...]:
        """The phases that are loaded at the same time."""
        alone = tuple((phase,) for phase in self.phases[: self.apart])
        return (*alone, self.phases[self.apart :])

    @property
    def regions(self) -> tuple[Region, ...]:
        """All buffers of the clip."""
        return tuple(one for phase in self.phases for one in phase.regions)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that are loaded at the same time, at the worst moment."""
        return max(sum(map(loaded_bytes, group)) for group in self.groups)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffers that live at the same time, at the worst moment."""
        return max(self.size_of(self.living(group)) for group in self.groups)

    @property
    def total_bytes(self) -> int:
        """What must be free on the device."""
        return max(map(self.bytes_of, self.groups))

    @property
    def expected_bytes(self) -> int:
        """The same with activations that the backend sizes as it runs, as far as they are known."""
        return max(
            self.bytes_of(group)
            + max(
                (one.expected_activations for one in group if one.activation_bytes is None),
                default=0,
            )
            for group in self.groups
        )

    @property
    def not_included(self) -> tuple[str, ...]:
        """What else a process needs, which the manifest does not tell."""
        process = ("what Python, its libraries and their copies of weights take",)
        if all(phase.activation_bytes is not None for phase in self.phases):
            return process
        return (f"activations, which {self.device} sizes as it runs", *process)

    def phase(self, name: str) -> Phase:
        """The phase called ``name``."""
        return next(phase for phase in self.phases if phase.name == name)

    def beside(self, phase: str) -> tuple[Phase, ...]:
        """The phases that are loaded together with the one called ``phase``, itself included."""
        return next(group for group in self.groups if any(phase == one.name for one in group))

    def living(self, group: tuple[Phase, ...]) -> tuple[Region, ...]:
        """The buffers that are there while ``group`` is loaded."""
        recurs = any(phase.recurs for phase in group)
        return tuple(
            one
            for phase in self.phases
            for one in phase.regions
            if phase in group or (recurs and phase.recurs and one.carried)
        )

    def bytes_of(self, group: tuple[Phase, ...]) -> int:
        """What ``group`` needs: weights and buffers add up, activations share one arena."""
        activations = max(phase.activation_bytes or 0 for phase in group)
        contexts = sum(phase.context_bytes for phase in group)
        weights = sum(map(loaded_bytes, group))
        return weights + activations + contexts + self.size_of(self.living(group))

    def size_of(self, regions: tuple[Region, ...]) -> int:
        """Bytes of buffers."""
        return sum(num_bytes(one.dtype, resolve(one.shape, self.dims)) for one in regions)

    def rows(self) -> dict[str, tuple[int, ...]]:
        """Bytes by what they are for, one number for each phase alone."""
        columns = [self._column(phase) for phase in self.phases]
        names = dict.fromkeys(name for column in columns for name in column)
        ordered = [*(name for name in names if name not in (NEEDED, STAGING)), NEEDED]
        ordered += [STAGING] if self.staged else []
        return {name: tuple(column.get(name, 0) for column in columns) for name in ordered}

    def facts(self) -> dict[str, Any]:
        """The plan for a program."""
        rows = self.rows()
        return {
            "device": self.device,
            "phases": {
                phase.name: {name: sizes[index] for name, sizes in rows.items()}
                for index, phase in enumerate(self.phases)
            },
            "loaded_at_the_same_time": [
                {"phases": [phase.name for phase in group], "bytes": self.bytes_of(group)}
                for group in self.groups
            ],
            "total_bytes": self.total_bytes,
            "not_included": self.not_included,
        }

    def table(self) -> str:
        """The plan for a person."""
        rows = [(name, map(_mebibytes, sizes)) for name, sizes in self.rows().items()]
        cells = [("MiB", *(phase.name for phase in self.phases))]
        cells += [(name, *numbers) for name, numbers in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])])
            for name, *numbers in cells
        ]
        return "\n".join([*lines, *self._notes()])

    def _column(self, phase: Phase) -> dict[str, int]:
        column = {WEIGHTS: loaded_bytes(phase)}
        if phase.activation_bytes is not None:
            column[ACTIVATIONS] = phase.activation_bytes
        if phase.context_bytes:
            column[CONTEXTS] = phase.context_bytes
        living = self.living((phase,))
        for group in dict.fromkeys(one.group for one in living):
            column[group] = self.size_of(tuple(one for one in living if one.group == group))
        column[NEEDED] = self.bytes_of((phase,))
        column[STAGING] = self.size_of(tuple(one for one in phase.regions if one.filled))
        return column

    def _notes(self) -> list[str]:
        """What the numbers do not say."""
        groups = (
            f"{listed(phase.name for phase in group)} ({_mebibytes(self.bytes_of(group))} MiB)"
            for group in self.groups
        )
        notes = [f"Loaded at the same time: {'; then '.join(groups)}."]
        recurring = [phase.name for phase in self.phases[: self.apart] if phase.recurs]
        if recurring:
            turns = listed(phase.name for phase in self.phases if phase.recurs)
            notes.append(f"The {turns} take turns, loaded anew at every chunk, which is slow.")
        return [*notes, f"Not included: {'; '.join(self.not_included)}."]


def weight_bytes(sizes: Mapping[str, int], entries: Mapping[str, Entry]) -> dict[str, int]:
    """Bytes of each graph's files, from the ``sizes`` of the manifest's files, or of its plan."""
    return {
        name: entry.weight_bytes
        if isinstance(entry, Plan)
        else sum(sizes[path] for path in (entry.path, *entry.weights))
        for name, entry in entries.items()
    }


def loaded_bytes(phase: Phase) -> int:
    """Bytes of the weights of all graphs of a phase."""
    return sum(phase.weights.values())


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def listed(names: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
