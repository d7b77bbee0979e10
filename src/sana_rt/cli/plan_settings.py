"""The options that say which plans are meant; `build` and `explain` share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, get_args

import click

from sana_rt.bundle import Bundle
from sana_rt.engines import presets, profiles
from sana_rt.engines.freshness import Settings
from sana_rt.engines.trt_api import TARGETS, Flavour, TensorRT
from sana_rt.errors import UsageError

DEFAULT_TARGET: Final = "sm120"

_OPTIONS: Final = (
    click.option("--variant", help="Which variant of the bundle; needed if it has several."),
    click.option("--target", type=click.Choice(list(TARGETS)), help="The card to build for."),
    click.option("--workload", help="Name or .toml file; the model's defaults if left out."),
    click.option(
        "--flavour", type=click.Choice(get_args(Flavour)), default="rtx", show_default=True
    ),
    click.option("--tf32", is_flag=True, help="Let float32 GEMMs round their operands to TF32."),
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings(
    bundle: Bundle,
    tensorrt: TensorRT,
    *,
    variant: str,
    target: str | None,
    workload: str | None,
    tf32: bool,
) -> Settings:
    """What a build is asked for."""
    return Settings(
        variant=variant,
        target=tensorrt.target(target or DEFAULT_TARGET),
        workload=(
            presets.workload(workload) if workload else profiles.for_model(bundle.manifest.model)
        ),
        flavour=tensorrt.flavour,
        flavour_version=tensorrt.version,
        tf32=tf32,
    )


def only_variant(bundle: Bundle, variant: str | None) -> str:
    """The variant that is meant."""
    names = list(bundle.manifest.variants)
    if variant is not None:
        bundle.manifest.variant(variant)
        return variant
    if len(names) > 1:
        raise UsageError(
            f"{bundle.root} has the variants {', '.join(names)}.",
            expected="--variant with one of them.",
        )
    return names[0]
