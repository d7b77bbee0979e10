"""What is inside a bundle's plans: types, traffic, memory, and bounds on time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sana_rt import graph_names
from sana_rt.bundle import Bundle
from sana_rt.engines import plan_table, roofline
from sana_rt.engines.cards import Card
from sana_rt.engines.plan_table import PlanTable
from sana_rt.engines.roofline import KernelRow, Sums
from sana_rt.errors import ManifestReferenceError
from sana_rt.manifest import Plan
from sana_rt.model_spec import Frozen, ModelSpec
from sana_rt.tensors import num_bytes, resolve

HEAVIEST: Final = 15
#: The driver's context, libraries and compiled kernels. An allowance, not a measurement.
_RUNTIME_BYTES: Final = 1 << 30


class GraphRow(Frozen, frozen=True):
    """One plan; bounds and sums are those of one run."""

    graph: str
    seconds: float
    bytes: int
    flops: int
    activation_bytes: int
    weight_bytes: int
    not_counted: int


class Memory(Frozen, frozen=True):
    """Device memory with every plan loaded: what TensorRT reports, and what a clip holds."""

    weight_bytes: int
    arena_bytes: int  # one activation arena, of the plan that needs the largest
    buffer_bytes: int  # every input and output at its largest, once, and the state of all blocks
    runtime_bytes: int
    device_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.weight_bytes + self.arena_bytes + self.buffer_bytes + self.runtime_bytes

    @property
    def fits(self) -> bool:
        """Whether the card has that much."""
        return self.total_bytes <= self.device_bytes


class PlanReport(Frozen, frozen=True):
    """The plans of one variant for one target, with bounds for one card."""

    variant: str
    target: str
    device: str
    built_with: str
    gemm_flop_shares: dict[str, float]  # of all blocks, by type of operands
    blocks_seconds: float  # of one run of every block
    blocks_bytes: int
    block_groups: tuple[Sums, ...]  # of one block
    block_kernels: tuple[KernelRow, ...]
    memory: Memory
    fits: bool
    graphs: tuple[GraphRow, ...]
    without_plan: tuple[str, ...]  # graphs that nothing here counts


def report(bundle: Bundle, variant: str, target: str, card: Card) -> PlanReport:
    """Read the build logs of a variant's plans for ``target``."""
    listed = bundle.manifest.variant(variant)
    plans = listed.plans.get(target, {})
    if not plans:
        raise ManifestReferenceError(
            f"The variant {variant!r} has no plans for {target!r}.",
            expected=f"plans for one of {sorted(listed.plans)}.",
            remedy=f"run `sana-rt build --variant {variant} --target {target}`.",
        )
    tables = {name: plan_table.read(bundle.path(plan.log)) for name, plan in plans.items()}
    blocks = {name: table for name, table in tables.items() if graph_names.is_block(name)}
    first = list(blocks.values())[:1]
    of_blocks = roofline.totals(blocks.values(), card)
    used = memory(bundle.manifest.model, plans, card)
    one = next(iter(plans.values()))
    return PlanReport(
        variant=variant,
        target=target,
        device=card.name,
        built_with=f"{one.flavour} {one.flavour_version}",
        gemm_flop_shares=of_blocks.flop_shares("gemm"),
        blocks_seconds=of_blocks.seconds,
        blocks_bytes=of_blocks.bytes,
        block_groups=roofline.totals(first, card).groups,
        block_kernels=roofline.kernel_rows(first[0], card)[:HEAVIEST] if first else (),
        memory=used,
        fits=used.fits,
        graphs=tuple(_row(name, plans[name], tables[name], card) for name in plans),
        without_plan=tuple(name for name in listed.graphs if name not in plans),
    )


def memory(model: ModelSpec, plans: Mapping[str, Plan], card: Card) -> Memory:
    """What must be on the card to run all ``plans``."""
    buffers: dict[str, int] = {}
    shared = _largest(*plans.values())
    for axis in ("height", "width"):  # of frames, which only outputs have
        if f"latent_{axis}" in shared:
            shared.setdefault(axis, shared[f"latent_{axis}"] * model.vae.spatial_stride)
    for plan in plans.values():
        largest = shared | _largest(plan)
        for tensor in plan.inputs + plan.outputs:
            size = num_bytes(tensor.dtype, resolve(tensor.shape, largest))
            buffers[tensor.name] = max(buffers.get(tensor.name, 0), size)
    if model.transformer.causal:
        for name in ("state_s", "state_k", "state_z"):
            buffers[name] = buffers.get(name, 0) * model.transformer.num_layers
    return Memory(
        weight_bytes=sum(plan.weight_bytes for plan in plans.values()),
        arena_bytes=max(plan.activation_bytes for plan in plans.values()),
        buffer_bytes=sum(buffers.values()),
        runtime_bytes=_RUNTIME_BYTES,
        device_bytes=card.memory_bytes,
    )


def _largest(*plans: Plan) -> dict[str, int]:
    """The largest value of every dimension that the plans' profiles name."""
    largest: dict[str, int] = {}
    for plan in plans:
        for name, span in plan.profile.items():
            largest[name] = max(largest.get(name, 0), span.max)
    return largest


def _row(name: str, plan: Plan, table: PlanTable, card: Card) -> GraphRow:
    totals = roofline.totals([table], card)
    return GraphRow(
        graph=name,
        seconds=totals.seconds,
        bytes=totals.bytes,
        flops=totals.flops,
        activation_bytes=plan.activation_bytes,
        weight_bytes=plan.weight_bytes,
        not_counted=totals.not_counted,
    )
