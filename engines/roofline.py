"""A lower bound on the time of a plan, from its compiled layer table and a card's peaks.

It is a bound, never a time: a kernel may read its inputs more than once, may not reach the
peak, and what the card's just-in-time compiler makes of it is not known here.

The counting rule, for every kernel: the larger of FLOP / peak of the operands' type and
bytes / bandwidth, where the bytes are those of everything it reads and writes. What it lists
several times counts once, by name; a slice is listed with the size of the whole tensor and
counts as that. FLOPs are those of GEMMs, convolutions and fused attention, two for a
multiply-add; element-wise arithmetic counts as nothing. Kernels run one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sana_rt.engines.cards import Card
from sana_rt.engines.plan_table import Kernel, PlanTable, Tensor
from sana_rt.errors import PlanTableError, UsageError
from sana_rt.model_spec import Frozen

OpClass = Literal["gemm", "attention", "convolution", "quantize", "other"]

#: TensorRT's kinds of kernels that multiply matrices or convolve.
_GEMMS: Final = ("gemm", "runtime_fusion")
_CONVOLUTIONS: Final = ("correlation", "deconv")
_ATTENTION: Final = "mha"  # in the name of a fused attention kernel
_QUANTIZE: Final = "_Dyna"  # in the name of a dynamic block quantization


@dataclass(frozen=True)
class Work:
    """What a kernel has to do; ``dtype`` is that of the operands of its multiplications."""

    op_class: OpClass
    flops: int
    bytes: int
    dtype: str | None = None

    def seconds(self, card: Card) -> float:
        """The bound on its time on ``card``."""
        return max(self._compute_seconds(card), self.bytes / card.bandwidth)

    def _compute_seconds(self, card: Card) -> float:
        if self.dtype is None:
            return 0.0
        if self.dtype not in card.peaks:
            raise UsageError(
                f"{card.name} has no peak for {self.dtype}, which the plan multiplies in.",
                expected=f"a plan that multiplies in {', '.join(card.peaks)}.",
            )
        return self.flops / card.peaks[self.dtype]


@dataclass(frozen=True)
class Row:
    """A kernel and its work."""

    kernel: Kernel
    work: Work


class KernelRow(Frozen, frozen=True):
    """A kernel, its work and the bound on its time."""

    name: str
    op_class: str
    dtype: str | None
    seconds: float
    flops: int
    bytes: int
    nodes: tuple[str, ...]


class Sums(Frozen, frozen=True):
    """What the kernels of one class and one type of operands do, and the bound on it."""

    op_class: str
    dtype: str | None
    flops: int
    bytes: int
    seconds: float

    @property
    def name(self) -> str:
        """Class and type, such as ``gemm bfloat16``."""
        return f"{self.op_class} {self.dtype}" if self.dtype else self.op_class


class Totals(Frozen, frozen=True):
    """Sums over a plan; ``not_counted`` kernels have dimensions that are decided at run time."""

    groups: tuple[Sums, ...]
    not_counted: int

    @property
    def seconds(self) -> float:
        """The bound on the time of all kernels."""
        return sum(group.seconds for group in self.groups)

    @property
    def bytes(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(group.bytes for group in self.groups)

    @property
    def flops(self) -> int:
        """FLOPs of all kernels."""
        return sum(group.flops for group in self.groups)

    def flop_shares(self, op_class: str | None = None) -> dict[str, float]:
        """The part, 0 to 1, of the FLOPs by type of operands; of one class, or of all."""
        chosen = [group for group in self.groups if op_class in (None, group.op_class)]
        total = sum(group.flops for group in chosen)
        shares: dict[str, float] = {}
        for group in chosen:
            if group.dtype is not None and total:
                shares[group.dtype] = shares.get(group.dtype, 0.0) + group.flops / total
        return shares


def rows(table: PlanTable) -> tuple[Row, ...]:
    """The work of every kernel whose dimensions are known."""
    return tuple(Row(kernel, work(kernel)) for kernel in table.kernels if kernel.is_fixed)


def totals(tables: Iterable[PlanTable], card: Card) -> Totals:
    """The sums over the plans of ``tables``, each run once."""
    groups: dict[tuple[str, str | None], Sums] = {}
    not_counted = 0
    for table in tables:
        counted = rows(table)
        not_counted += len(table.kernels) - len(counted)
        for row in counted:
            one = row.work
            new = Sums(one.op_class, one.dtype, one.flops, one.bytes, one.seconds(card))
            key = (one.op_class, one.dtype)
            groups[key] = combined(groups[key], new) if key in groups else new
    return Totals(tuple(group for group in groups.values() if group.bytes), not_counted)


def kernel_rows(table: PlanTable, card: Card) -> tuple[KernelRow, ...]:
    """The kernels that move or compute anything, the heaviest by the bound first."""
    found = (
        KernelRow(
            name=row.kernel.name,
            op_class=row.work.op_class,
            dtype=row.work.dtype,
            seconds=row.work.seconds(card),
            flops=row.work.flops,
            bytes=row.work.bytes,
            nodes=row.kernel.nodes,
        )
        for row in rows(table)
        if row.work.bytes
    )
    return tuple(sorted(found, key=lambda row: -row.seconds))


def with_layers(one: Totals, two: Totals, layers: int) -> Totals:
    """What ``layers`` equal layers do, from what one and what two do."""
    more = layers - 1
    groups = zip(one.groups, two.groups, strict=True)
    return Totals(
        tuple(combined(combined(first, second, more), first, -more) for first, second in groups),
        one.not_counted,
    )


def mean(parts: Sequence[tuple[Totals, int]]) -> Totals:
    """The mean over plans, each of which counts as often as said; ``not_counted`` is their sum."""
    count = sum(times for _, times in parts)
    groups: dict[tuple[str, str | None], Sums] = {}
    for one, times in parts:
        for each in one.groups:
            key = (each.op_class, each.dtype)
            groups[key] = combined(groups.get(key, Sums(*key, 0, 0, 0.0)), each, times)
    means = (
        Sums(*key, round(total.flops / count), round(total.bytes / count), total.seconds / count)
        for key, total in groups.items()
    )
    return Totals(tuple(means), sum(one.not_counted for one, _ in parts))


def combined(a: Sums, b: Sums, times: int = 1) -> Sums:
    """``a`` and ``times`` as much as ``b``, of the same class and type."""
    return Sums(
        a.op_class,
        a.dtype,
        a.flops + times * b.flops,
        a.bytes + times * b.bytes,
        a.seconds + times * b.seconds,
    )


def work(kernel: Kernel) -> Work:
    """Class, FLOPs and bytes of a kernel with known dimensions."""
    moved = _bytes(kernel.operands) + _bytes(kernel.outputs)
    if _ATTENTION in kernel.name:
        return Work("attention", _attention_flops(kernel), moved, kernel.inputs[0].dtype)
    if kernel.kind in _GEMMS:
        first, depth = _gemm(kernel)
        return Work("gemm", 2 * kernel.outputs[0].elements * depth, moved, first.dtype)
    if kernel.kind in _CONVOLUTIONS:
        return _convolution(kernel, moved)
    return Work("quantize" if _QUANTIZE in kernel.name else "other", 0, moved)


def _bytes(tensors: Iterable[Tensor]) -> int:
    largest: dict[str, int] = {}
    for tensor in tensors:
        largest[tensor.name] = max(largest.get(tensor.name, 0), tensor.bytes)
    return sum(largest.values())


def _gemm(kernel: Kernel) -> tuple[Tensor, int]:
    """An operand of a GEMM and the dimension that is summed over.

    The operands are the two tensors a [..., m, k] and b [..., k, n] whose product has the
    shape [..., m, n] of the output; bias and scales of a fused kernel are not.
    """
    matrices = [tensor for tensor in kernel.operands if len(tensor.shape) >= 2]
    for a in matrices:
        for b in matrices:
            fits = a.dtype == b.dtype and a.shape[-1] == b.shape[-2]
            if a is not b and fits and kernel.outputs[0].shape[-2:] == (a.shape[-2], b.shape[-1]):
                return a, a.shape[-1]
    raise _not_understood(kernel, "two operands [m, k] and [k, n] with an output [m, n]")


def _attention_flops(kernel: Kernel) -> int:
    """Q Kᵀ and the weights times V, from Q [b, n, d], K [b, d, s] and the output [b, n, d]."""
    q, k, out = kernel.inputs[0], kernel.inputs[1], kernel.outputs[0]
    if len(q.shape) != 3 or len(k.shape) != 3 or k.shape[:2] != (q.shape[0], q.shape[2]):
        raise _not_understood(kernel, "Q [b, n, d] and K [b, d, s]")
    return 2 * k.shape[2] * (q.elements + out.elements)


def _convolution(kernel: Kernel, moved: int) -> Work:
    """A convolution has weights [out, in / groups, ...], a transposed one [in, out, ...].

    Of the other operands, a bias is [1, out, ...] and a residual has the output's shape.
    """
    image, out = kernel.inputs[0], kernel.outputs[0]
    transposed = kernel.kind == "deconv"
    positions, channels = (image, image.shape[1]) if transposed else (out, out.shape[1])
    for weights in (*kernel.constants, *kernel.inputs[1:]):
        if len(weights.shape) == len(image.shape) and weights.shape[0] == channels:
            flops = 2 * positions.elements * (weights.elements // channels)
            return Work("convolution", flops, moved, weights.dtype)
    raise _not_understood(kernel, f"weights [{channels}, ...]")


def _not_understood(kernel: Kernel, expected: str) -> PlanTableError:
    shapes = [(tensor.dtype, tensor.shape) for tensor in kernel.operands + kernel.outputs]
    return PlanTableError(
        f"The work of the {kernel.kind} kernel {kernel.name!r} cannot be counted: {shapes}.",
        expected=f"{expected}.",
        remedy="extend engines/roofline.py to what this kernel does.",
    )
