"""``sana-rt explain``: which plans are current, and why the others would be built."""

from __future__ import annotations

from pathlib import Path

import click

from sana_rt.bundle import Bundle
from sana_rt.cli import output, plan_settings
from sana_rt.engines import freshness
from sana_rt.engines.freshness import Status
from sana_rt.engines.trt_api import Flavour, TensorRT


@click.command(epilog="Example: sana-rt explain out/bundle")
@click.argument("bundle", type=click.Path(path_type=Path))
@plan_settings.options
@click.option("--json", "as_json", is_flag=True, help="Print the reasons as JSON.")
def command(
    bundle: Path,
    *,
    variant: str | None,
    target: str | None,
    workload: str | None,
    flavour: Flavour,
    tf32: bool,
    as_json: bool,
) -> None:
    """Say of each plan of BUNDLE whether `sana-rt build` would leave it alone, and if not, why.

    Compares, part by part, what the manifest recorded when a plan was built with what would be
    built now, and the files with their hashes. Without --variant and --target, all of them.
    """
    tensorrt = TensorRT(flavour)
    read = Bundle.read(bundle)
    report: dict[str, dict[str, tuple[Status, ...]]] = {}
    for name in [variant] if variant else read.manifest.variants:
        recorded = list(read.manifest.variant(name).plans) or [plan_settings.DEFAULT_TARGET]
        report[name] = {}
        for chosen in [target] if target else recorded:
            settings = plan_settings.settings(
                read, tensorrt, variant=name, target=chosen, workload=workload, tf32=tf32
            )
            report[name][chosen] = freshness.survey(read, settings)
    if as_json:
        output.json(_reasons(report))
    else:
        _show(report)


def _reasons(
    report: dict[str, dict[str, tuple[Status, ...]]],
) -> dict[str, dict[str, dict[str, tuple[str, ...]]]]:
    return {
        variant: {
            target: {status.graph: status.reasons for status in statuses}
            for target, statuses in targets.items()
        }
        for variant, targets in report.items()
    }


def _show(report: dict[str, dict[str, tuple[Status, ...]]]) -> None:
    for variant, targets in report.items():
        for target, statuses in targets.items():
            output.table(
                f"Plans of {variant} for {target}",
                ("graph", "would `sana-rt build` build it?"),
                [(status.graph, "; ".join(status.reasons) or "no, current") for status in statuses],
            )
