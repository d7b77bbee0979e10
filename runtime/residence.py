"""What of a clip is loaded: the graphs of some phases, and the buffers that live with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from sana_rt.runtime.backends.buffers import Buffer, Memory
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.memory import MemoryPlan, Phase, Region
from sana_rt.tensors import resolve


class Residence:
    """Moves from one group of a plan's phases to the next.

    Whoever moves lets go of its bindings first: they would hold what is to be given back.
    """

    def __init__(self, graphs: Graphs, plan: MemoryPlan) -> None:
        self.plan = plan
        self.buffers = Buffers(plan.dims, graphs.memory)
        self._graphs = graphs
        self._group: tuple[Phase, ...] = ()

    @property
    def held_bytes(self) -> int:
        """What the plan counts for what is loaded now."""
        opened = set(self._graphs.opened)
        loaded = [phase for phase in self._group if opened & phase.weights.keys()]
        weights = sum(phase.weights.get(name, 0) for phase in loaded for name in opened)
        activations = max((phase.activation_bytes or 0 for phase in loaded), default=0)
        contexts = sum(phase.context_bytes for phase in loaded)
        buffers = self.plan.size_of(self.plan.living(self._group)) if self._group else 0
        return weights + activations + contexts + buffers

    def holds(self, phase: str) -> bool:
        """Whether it is at the group of a phase."""
        return self.plan.beside(phase) == self._group

    def move(self, phase: str) -> None:
        """Give back what cannot be beside a phase, and allocate the buffers of its group.

        Raises :class:`DeviceMemoryError` where the device has no room; then it is at no group.
        """
        group, self._group = self.plan.beside(phase), ()
        wanted = {name for each in group for name in each.weights}
        for name in set(self._graphs.opened) - wanted:
            self._graphs.close(name)
        living = self.plan.living(group)
        self.buffers.free_all_but(living)
        self._graphs.trim()
        self.buffers.allocate(living)
        self._group = group

    def leave(self) -> None:
        """Free all buffers; the graphs stay open for the plan that comes next."""
        self._group = ()
        self.buffers.free_all_but(())

    def missing(self, phase: str) -> tuple[str, ...]:
        """The graphs of a phase that are not open."""
        found = next(each for each in self._group if each.name == phase)
        return tuple(name for name in found.weights if name not in self._graphs.opened)


class Buffers(Mapping[str, Buffer]):
    """The regions of a plan that are allocated now, in their full size."""

    def __init__(self, dims: Mapping[str, int], memory: Memory) -> None:
        self._dims, self._memory = dims, memory
        self._regions: dict[str, Region] = {}
        self._buffers: dict[str, Buffer] = {}

    def allocate(self, regions: Iterable[Region]) -> None:
        """Allocate those that are missing, in zeros."""
        for one in regions:
            if one.name not in self._buffers:
                shape = resolve(one.shape, self._dims)
                self._buffers[one.name] = self._memory.allocate(one.dtype, shape)
                self._regions[one.name] = one

    def free_all_but(self, regions: Iterable[Region]) -> None:
        """Free the others."""
        for name in self._buffers.keys() - {one.name for one in regions}:
            del self._buffers[name], self._regions[name]

    def __getitem__(self, name: str) -> Buffer:
        """The buffer called ``name``."""
        return self._buffers[name]

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._buffers)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._buffers)

    def sized(self, **smaller: int) -> Mapping[str, Buffer]:
        """All buffers, as they are used when a dimension is smaller than planned."""
        dims = {**self._dims, **smaller}
        return {
            name: buffer.view(resolve(self._regions[name].shape, dims))
            for name, buffer in self._buffers.items()
        }
