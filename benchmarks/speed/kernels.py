"""Times of kernels beside the bounds of the rows of their plan's layer table, joined by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sana_rt.benchmarks.speed.bounds import Limits
from sana_rt.benchmarks.speed.turn import GraphKernels, KernelTime
from sana_rt.bundle import Bundle
from sana_rt.engines import plan_table, roofline
from sana_rt.engines.plan_table import Kernel, PlanTable
from sana_rt.model_spec import Count, Frozen


class KernelShare(Frozen, frozen=True):
    """A kernel that has a row in the layer table: one run, and the bound on it.

    ``bound_seconds`` is None where dimensions are decided at run time; ``reached`` is the part
    of the bound's speed that was reached, as of :class:`GraphShare`, and None also for a kernel
    that moves and computes nothing.
    """

    name: str
    op_class: str | None
    dtype: str | None
    seconds: float
    bound_seconds: float | None
    reached: float | None


class KernelShares(Frozen, frozen=True):
    """The kernels of a graph in the order in which TensorRT tells their times.

    What cannot be joined is not guessed: ``unlisted`` names were told and are not those of one
    row of the table; the kernels of ``untimed`` rows move or compute something, and no time was
    told of them.
    """

    graph: str
    runs: Count
    kernels: tuple[KernelShare, ...]
    unlisted: tuple[KernelTime, ...]
    untimed: tuple[str, ...]


def joined(bundle: Bundle, limits: Limits, found: GraphKernels) -> KernelShares:
    """The times of a graph beside the bounds of its plan; without one, all are unlisted."""
    plan = limits.plans.get(found.graph)
    table = PlanTable((), 0, 0) if plan is None else plan_table.read(bundle.path(plan.log))
    return shares(table, limits, found)


def shares(table: PlanTable, limits: Limits, found: GraphKernels) -> KernelShares:
    """The times of a graph beside the bounds of a layer table."""
    count = Counter(kernel.name for kernel in table.kernels)
    rows = {kernel.name: kernel for kernel in table.kernels if count[kernel.name] == 1}
    told = {each.name for each in found.kernels}
    return KernelShares(
        graph=found.graph,
        runs=found.runs,
        kernels=tuple(
            _share(rows[each.name], limits, each) for each in found.kernels if each.name in rows
        ),
        unlisted=tuple(each for each in found.kernels if each.name not in rows),
        untimed=tuple(name for name in _working(table) if name not in told),
    )


def _share(kernel: Kernel, limits: Limits, time: KernelTime) -> KernelShare:
    if not kernel.is_fixed:
        return KernelShare(time.name, None, None, time.seconds, None, None)
    work = roofline.work(kernel)
    bound = work.seconds(limits.card)
    return KernelShare(
        name=time.name,
        op_class=work.op_class,
        dtype=work.dtype,
        seconds=time.seconds,
        bound_seconds=bound,
        reached=limits.reached(bound or None, time.seconds),
    )


def _working(table: PlanTable) -> Iterator[str]:
    """The names of kernels that read or write anything, once each."""
    moving = (kernel.name for kernel in table.kernels if kernel.operands or kernel.outputs)
    yield from dict.fromkeys(moving)
