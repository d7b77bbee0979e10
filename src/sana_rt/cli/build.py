"""``sana-rt build``: the plans of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import click

from sana_rt import machine
from sana_rt.bundle import Bundle
from sana_rt.cli import output, progress
from sana_rt.cli.command import Command
from sana_rt.engines import freshness, workloads
from sana_rt.engines.cards import TARGETS
from sana_rt.engines.freshness import PlanStatus, Settings
from sana_rt.engines.trt_api import Flavour, TensorRT
from sana_rt.errors import UsageError

if TYPE_CHECKING:
    from sana_rt.engines.builder import Built

_DEFAULT_TARGET: Final = "sm120"

_SettingsOf = Callable[[str, str], Settings]  # of a variant and a target
_Statuses = dict[str, dict[str, tuple[PlanStatus, ...]]]  # by variant and target


@click.command(
    cls=Command, epilog="Example: sana-rt build out/bundle --variant bf16 --target sm120"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--variant",
    help="Variant to build, by its name or by the recipe that made it.  [default: the only one]",
)
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    help="Cards to build for: RTX 50 (sm120), RTX 40 (sm89), RTX 30 (sm86), A100 (sm80), or the "
    f"card in this machine (current).  [default: {_DEFAULT_TARGET}]",
)
@click.option(
    "--workload",
    help="Sizes to build for (the optimization profiles), by the name of a workload or as the path "
    "of a .toml file.  [default: the size of the model's default video; any length if the model is "
    "block-causal]",
)
@click.option(
    "--flavour",
    type=click.Choice(get_args(Flavour)),
    default="rtx",
    show_default=True,
    help="Library to build with: TensorRT-RTX (rtx) or TensorRT (trt).",
)
@click.option(
    "--tf32",
    is_flag=True,
    help="Let float32 GEMMs round their operands to TF32, which is faster and less exact.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="List which plans are current and why each other one would be built; build nothing. "
    "Without --variant, list all variants; without --target, all targets that have plans.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print what was built, or with --dry-run what would be and why, as JSON.",
)
def command(
    bundle: Path,
    *,
    variant: str | None,
    target: str | None,
    workload: str | None,
    flavour: Flavour,
    tf32: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build TensorRT engines (plans) of the graphs in BUNDLE; the card need not be in this machine.

    Plans that are current are not built again (--dry-run lists them). Each plan is recorded in
    the manifest as soon as it is finished, so a build that was killed resumes where it stopped.
    """
    tensorrt = TensorRT(flavour)
    read = Bundle.read(bundle)
    sizes = workloads.load(workload) if workload else workloads.for_model(read.manifest.model)

    def settings(variant: str, target: str) -> Settings:
        return Settings(variant, tensorrt.target(target), sizes, flavour, tensorrt.version, tf32)

    if dry_run:
        _show_statuses(_statuses(read, variant, target, settings), as_json=as_json)
    else:
        asked = settings(_only_variant(read, variant), target or _DEFAULT_TARGET)
        _build(read, asked, tensorrt, as_json=as_json)


def _statuses(
    bundle: Bundle, variant: str | None, target: str | None, settings: _SettingsOf
) -> _Statuses:
    """The status of every plan that is meant, by variant and target."""
    manifest = bundle.manifest
    return {
        name: {
            each: freshness.survey(bundle, settings(name, each))
            for each in ([target] if target else manifest.variant(name).plans or [_DEFAULT_TARGET])
        }
        for name in ([variant] if variant else manifest.variants)
    }


def _show_statuses(statuses: _Statuses, *, as_json: bool) -> None:
    if as_json:
        output.json(
            {
                variant: {
                    target: {status.graph: status.reasons for status in each}
                    for target, each in targets.items()
                }
                for variant, targets in statuses.items()
            }
        )
        return
    for variant, targets in statuses.items():
        for target, each in targets.items():
            output.table(
                f"Plans of {variant} for {target}",
                ("graph", "would it be built?"),
                [(status.graph, "; ".join(status.reasons) or "no, current") for status in each],
            )


def _only_variant(bundle: Bundle, variant: str | None) -> str:
    """The variant that is meant, by its name or by the recipe that made it."""
    names = list(bundle.manifest.variants)
    if variant is None and len(names) > 1:
        raise UsageError(
            f"{bundle.root} has the variants {', '.join(names)}.",
            expected="--variant with one of them.",
        )
    if variant is None or variant in names:
        return variant or names[0]
    if made := bundle.manifest.of_recipe(variant, "device"):
        return made[0]
    if f"{variant}-emulation" in names or bundle.manifest.of_recipe(variant, "emulation"):
        raise UsageError(
            f"{bundle.root} has only the emulation of {variant!r}, which is for CPUs.",
            expected="the variant for TensorRT, which is made from a bfloat16 variant.",
            remedy=f"run `sana-rt export CHECKPOINT {bundle.root} --dtype bf16` with the bundle's "
            "checkpoint, then `sana-rt quantize` again.",
        )
    return variant


def _build(bundle: Bundle, settings: Settings, tensorrt: TensorRT, *, as_json: bool) -> None:
    from sana_rt.engines import builder

    predicted = builder.predicted_peak_bytes(bundle, settings.variant)
    output.stderr().print(
        f"The build is expected to need at most {output.size(predicted)} of memory."
    )
    with progress.shown("Checking the existing plans") as report:
        built = builder.build_variant(
            bundle.root, settings, tensorrt, lambda at: report(at.graph, at.index, at.total)
        )
    if as_json:
        output.json(
            {
                "variant": settings.variant,
                "target": settings.target.name,
                "built": {graph: _facts(one) for graph, one in built.items()},
                "predicted_peak_bytes": predicted,
                "peak_bytes": machine.peak_resident_bytes(),
            }
        )
        return
    _show_built(settings, built)
    if (peak := machine.peak_resident_bytes()) is not None:
        click.echo(f"Peak memory of this process: {output.size(peak)}.")


def _show_built(settings: Settings, built: dict[str, Built]) -> None:
    plans = f"of {settings.variant} for {settings.target.name}"
    if not built:
        click.echo(f"All plans {plans} are current.")
        return
    output.table(
        f"Plans {plans}, built with {settings.flavour} {settings.flavour_version}",
        ("graph", "plan>", "weights>", "activations>", "seconds>"),
        [(graph, *_row(one)) for graph, one in built.items()],
    )
    click.echo()


def _facts(built: Built) -> dict[str, int | float]:
    return {
        "plan_bytes": built.plan.stat().st_size,
        "weight_bytes": built.weight_bytes,
        "activation_bytes": built.activation_bytes,
        "seconds": round(built.seconds, 3),
    }


def _row(built: Built) -> tuple[str, ...]:
    return (
        output.size(built.plan.stat().st_size),
        output.size(built.weight_bytes),
        output.size(built.activation_bytes),
        f"{built.seconds:.1f}",
    )
