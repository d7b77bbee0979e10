"""What `sana-rt inspect --plans` and `--plot` show."""

from __future__ import annotations

from pathlib import Path

from sana_rt.bundle import Bundle
from sana_rt.cli import output
from sana_rt.engines import cards, plan_report
from sana_rt.engines.plan_report import PlanReport
from sana_rt.engines.roofline import KernelRow
from sana_rt.errors import MissingDependencyError, UsageError
from sana_rt.figures import FORMATS
from sana_rt.files import write_bytes


def show(bundle: Bundle, *, device: str | None, as_json: bool, plot: Path | None) -> None:
    """Print a report of every variant's plans for every target, and draw them."""
    reports = [
        plan_report.report(
            bundle, name, target, cards.card(device) if device else cards.card_of(target)
        )
        for name, variant in bundle.manifest.variants.items()
        for target in variant.plans
    ]
    if not reports:
        raise UsageError(
            f"{bundle.root} has no plans.",
            expected="a bundle with plans.",
            remedy=f"run `sana-rt build {bundle.root}`.",
        )
    if plot is not None:
        _draw(reports, plot)
    if as_json:
        output.json(reports)
        return
    for report in reports:
        _show(report)


def _draw(reports: list[PlanReport], plot: Path) -> None:
    suffix = plot.suffix.removeprefix(".")
    if suffix not in FORMATS:
        raise UsageError(
            f"A plot cannot be written as {plot.name!r}.",
            expected=f"a name that ends with {', '.join(f'.{each}' for each in FORMATS)}.",
        )
    try:
        from sana_rt.engines import plan_plot
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"A plot needs the package {error.name!r}, which is not installed.",
            remedy='pip install "sana-rt[bench]"',
        ) from error

    blocks = {f"{one.variant}, {one.target}": one.block_groups for one in reports}
    write_bytes(plot, plan_plot.draw(blocks, suffix))


def _show(report: PlanReport) -> None:
    memory = report.memory
    shares = ", ".join(f"{dtype} {part:.1%}" for dtype, part in report.gemm_flop_shares.items())
    output.table(
        f"Plans of {report.variant} for {report.target}, built with {report.built_with}",
        ("", ""),
        [
            ("GEMM FLOPs of the blocks", shares or "not known: dimensions are not fixed"),
            ("all blocks, once", f"{report.blocks_seconds * 1e3:.1f} ms at least (a bound)"),
            ("they move", f"{report.blocks_bytes / 1e9:.1f} GB"),
            ("weights", output.size(memory.weight_bytes)),
            ("activations", f"{output.size(memory.arena_bytes)}, one arena for all plans"),
            ("inputs, outputs, state", output.size(memory.buffer_bytes)),
            ("driver and libraries", f"{output.size(memory.runtime_bytes)} (an allowance)"),
            ("together", _fit(report)),
            ("graphs without a plan", ", ".join(report.without_plan) or "none"),
        ],
    )
    output.table(
        f"By graph, one run each, bounds for {report.device}",
        ("graph", "bound>", "GB>", "GFLOP>", "weights>", "activations>", "not counted>"),
        [
            (
                row.graph,
                f"{row.seconds * 1e3:.3f} ms",
                f"{row.bytes / 1e9:.3f}",
                f"{row.flops / 1e9:.1f}",
                output.size(row.weight_bytes),
                output.size(row.activation_bytes),
                f"{row.not_counted} kernels" if row.not_counted else "",
            )
            for row in report.graphs
        ],
    )
    kernels("The heaviest kernels of a block", report.block_kernels)


def kernels(title: str, rows: tuple[KernelRow, ...]) -> None:
    """Print a table of kernels."""
    output.table(
        title,
        ("class", "operands", "bound>", "GFLOP>", "MB>", "nodes"),
        [
            (
                row.op_class,
                row.dtype or "",
                f"{row.seconds * 1e3:.3f} ms",
                f"{row.flops / 1e9:.1f}",
                f"{row.bytes / 1e6:.1f}",
                ", ".join(row.nodes[:3]),
            )
            for row in rows
        ],
    )


def _fit(report: PlanReport) -> str:
    memory = report.memory
    verdict = "fits in" if report.fits else "DOES NOT FIT in"
    return (
        f"{output.size(memory.total_bytes)}, {verdict} the {output.size(memory.device_bytes)} "
        f"of a {report.device}"
    )
