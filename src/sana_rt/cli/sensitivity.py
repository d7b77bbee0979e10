"""``sana-rt sensitivity``: which layers may be quantized."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import click

from sana_rt.bundle import Bundle
from sana_rt.cli import output as show
from sana_rt.cli import paths, progress
from sana_rt.cli.command import Command, overwrite_option
from sana_rt.errors import UsageError
from sana_rt.files import write_bytes
from sana_rt.quantize import recipe as recipes

if TYPE_CHECKING:
    from sana_rt.quantize.quantized_layer import QuantizedFormat
    from sana_rt.quantize.sensitivity import Entry, Sensitivity

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    cls=Command,
    epilog="Example: sana-rt sensitivity out/bundle --prompts prompts.txt -o out/sensitivity.json "
    "--propose out/own.toml --fp4-share 0.67",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompts", type=_FILE, required=True, help="Text file of prompts to generate, one per line."
)
@click.option("-o", "--output", type=_FILE, required=True, help="Results file to write, .json.")
@click.option(
    "--heat-map", type=_FILE, help="Also draw the results as a heat map in this .svg file."
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["nvfp4", "fp8"]),
    default="nvfp4",
    show_default=True,
    help="Format to quantize each layer to.",
)
@click.option(
    "--propose",
    type=_FILE,
    help="Also write a recipe proposed from the results to this .toml file.",
)
@click.option(
    "--fp4-share",
    type=float,
    default=0.67,
    show_default=True,
    help="Least share of the FLOPs, above 0 and up to 1, that the proposed recipe runs in FP4.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@overwrite_option
def command(
    bundle: Path,
    *,
    prompts: Path,
    output: Path,
    heat_map: Path | None,
    fmt: QuantizedFormat,
    propose: Path | None,
    fp4_share: float,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Quantize each layer of each block of BUNDLE alone, and measure the error of the velocity.

    Short clips are generated first to record the inputs of the blocks. The run time grows with
    the square of the number of blocks; one or two prompts are enough to tell layers apart.
    """
    import msgspec

    from sana_rt.cli.recorded_passes import recorded_passes
    from sana_rt.quantize import calibrate, sensitivity, variant

    paths.check_suffix("--output", output, ".json")
    paths.check_suffix("--heat-map", heat_map, ".svg")
    paths.check_suffix("--propose", propose, ".toml")
    if propose is not None and fmt != "nvfp4":
        raise UsageError(
            "--propose needs errors in NVFP4.", expected="--propose without --format fp8."
        )
    if propose is not None:
        recipes.check_name(propose.stem)
    written = {"--output": output, "--heat-map": heat_map, "--propose": propose}
    paths.check(written, {"--prompts": prompts}, overwrite=overwrite)
    sensitivity.check_share(fp4_share)
    opened = Bundle.open(bundle)
    name = variant.source_variant(opened.manifest)
    with (
        progress.shown("Loading") as report,
        recorded_passes(opened, name, prompts, threads, report) as passes,
    ):
        table = calibrate.calibrate(opened, name, passes, passes.header.prompts, report)
        found = sensitivity.measure(opened, name, passes, table, fmt=fmt, progress=report)
    write_bytes(output, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    if heat_map is not None:
        from sana_rt.quantize.heat_map import draw

        write_bytes(heat_map, draw(found))
    if propose is not None:
        recipe = sensitivity.propose(found, fp4_share, propose.stem)
        write_bytes(propose, sensitivity.to_toml(recipe).encode())
    _show(found)


def _show(found: Sensitivity) -> None:
    groups: dict[str, list[Entry]] = {}
    for entry in found.entries:
        groups.setdefault(entry.group, []).append(entry)
    show.table(
        f"One layer in {found.format}, means over blocks and {found.passes} passes",
        ("layer", "SQNR, dB>", "cosine>", "velocity error>", "worst block>", "FLOPs>"),
        [(name, *_row(found, name, entries)) for name, entries in groups.items()],
    )


def _row(found: Sensitivity, group: str, entries: list[Entry]) -> tuple[str, ...]:
    errors = {
        layer.split("/")[0]: error
        for layer, error in found.velocity_errors().items()
        if layer.split("/")[1] == group
    }
    shares = {entry.block: entry.share for entry in entries}
    return (
        f"{mean(entry.sqnr for entry in entries):.1f}",
        f"{mean(entry.cosine for entry in entries):.4f}",
        f"{mean(errors.values()):.3g}",
        max(errors, key=lambda block: errors[block]),
        f"{sum(shares.values()):.1%}",
    )
