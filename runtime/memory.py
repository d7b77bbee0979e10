"""Device memory, planned from the manifest before the first byte is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sana_rt.errors import DeviceMemoryError
from sana_rt.graph_names import TEXT_ENCODER
from sana_rt.manifest import Plan
from sana_rt.runtime.backends.base import Entry
from sana_rt.runtime.backends.buffers import Buffer, Memory
from sana_rt.tensors import Shape, num_bytes, resolve


@dataclass(frozen=True)
class Region:
    """A tensor to allocate; the named dimensions of ``shape`` are those of the plan."""

    name: str
    group: str
    dtype: str
    shape: Shape


def region(group: str, graph: Entry, tensor: str, name: str = "") -> Region:
    """Room for an input or output of ``graph``, called ``name`` or as the tensor is."""
    spec = next(spec for spec in (*graph.inputs, *graph.outputs) if spec.name == tensor)
    return Region(name or tensor, group, spec.dtype, spec.shape)


def single(one: Region) -> Region:
    """The same for a batch of one."""
    shape = tuple(1 if dim == "batch" else dim for dim in one.shape)
    return Region(one.name, one.group, one.dtype, shape)


def stacked(one: Region, count: int) -> Region:
    """``count`` of them in a new first dimension."""
    return Region(one.name, one.group, one.dtype, (count, *one.shape))


@dataclass(frozen=True)
class MemoryPlan:
    """A clip's memory on ``device``, as the backend is called: weights, activations, buffers.

    ``weights`` are bytes by graph. Unless the text encoder is kept it is gone before the other
    graphs are loaded. ``activation_bytes`` is None where the backend sizes them as it runs.
    """

    device: str
    weights: Mapping[str, int]
    regions: tuple[Region, ...]
    dims: Mapping[str, int]
    keep_text_encoder: bool = False
    activation_bytes: int | None = None

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(self._bytes(one) for one in self.regions)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that are loaded at the same time, at the worst moment."""
        text_encoder = self.weights.get(TEXT_ENCODER, 0)
        others = sum(self.weights.values()) - text_encoder
        return others + text_encoder if self.keep_text_encoder else max(others, text_encoder)

    @property
    def total_bytes(self) -> int:
        """What must be free on the device."""
        return self.weight_bytes + (self.activation_bytes or 0) + self.buffer_bytes

    @property
    def not_included(self) -> tuple[str, ...]:
        """What else a process needs, which the manifest does not tell."""
        activations = (f"activations, which {self.device} sizes as it runs",)
        process = ("what Python, its libraries and their copies of weights take",)
        return process if self.activation_bytes is not None else activations + process

    def rows(self) -> list[tuple[str, int]]:
        """What the memory is for, and bytes."""
        groups: dict[str, int] = {}
        for one in self.regions:
            groups[one.group] = groups.get(one.group, 0) + self._bytes(one)
        planned = () if self.activation_bytes is None else (("activations", self.activation_bytes),)
        return [("weights (most at one time)", self.weight_bytes), *planned, *groups.items()]

    def table(self) -> str:
        """The plan for a person."""
        rows = [*self.rows(), ("planned", self.total_bytes)]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {size / 2**20:>10,.1f} MiB" for name, size in rows]
        return "\n".join([*lines, f"Not included: {'; '.join(self.not_included)}."])

    def check(self, free: int | None, loaded: int = 0) -> None:
        """Raise :class:`DeviceMemoryError` if less is ``free`` than needed.

        ``loaded`` bytes of the weights are there already. None says that the device does not
        tell what is free.
        """
        needed = self.total_bytes - loaded
        if free is not None and needed > free:
            raise DeviceMemoryError(
                f"The clip needs {needed:,} bytes on {self.device}, of which {free:,} are free:\n"
                + self.table(),
                remedy="ask for a smaller or shorter clip, or free memory that other programs use.",
            )

    def _bytes(self, one: Region) -> int:
        return num_bytes(one.dtype, resolve(one.shape, self.dims))


class Buffers(Mapping[str, Buffer]):
    """The allocated regions of a plan, in their full size."""

    def __init__(self, plan: MemoryPlan, memory: Memory) -> None:
        self.plan = plan
        self._regions = {one.name: one for one in plan.regions}
        self._buffers = {
            one.name: memory.allocate(one.dtype, resolve(one.shape, plan.dims))
            for one in plan.regions
        }

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
        dims = {**self.plan.dims, **smaller}
        return {
            name: buffer.view(resolve(self._regions[name].shape, dims))
            for name, buffer in self._buffers.items()
        }


def weight_bytes(sizes: Mapping[str, int], entries: Mapping[str, Entry]) -> dict[str, int]:
    """Bytes of each graph's files, from the ``sizes`` of the manifest's files, or of its plan."""
    return {
        name: entry.weight_bytes
        if isinstance(entry, Plan)
        else sum(sizes[path] for path in (entry.path, *entry.weights))
        for name, entry in entries.items()
    }
