"""``sana-rt quantize``: NVFP4 variants of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
import msgspec

from sana_rt.bundle import Bundle
from sana_rt.cli import output, paths, progress
from sana_rt.errors import UsageError
from sana_rt.files import write_bytes
from sana_rt.quantize import recipe as recipes

if TYPE_CHECKING:
    from sana_rt.quantize.calibration_table import Algorithm, CalibrationTable
    from sana_rt.quantize.quantized_layer import QuantizedFormat

Report = Callable[[str, int, int], None]
_FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.command(epilog="Example: sana-rt quantize out/bundle --recipe mixed")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    required=True,
    help=f"Which layers to quantize, and to which format: {', '.join(recipes.names())}, or "
    "the path of a .toml file.",
)
@click.option(
    "--prompts",
    type=_FILE,
    help="Text file of prompts to calibrate on, one per line.  [default: no calibration]",
)
@click.option(
    "--algorithm",
    type=click.Choice(["max", "awq-lite"]),
    help="Calibration algorithm: max finds the largest magnitude of each layer's input; awq-lite "
    "also finds a pre-quant scale for each input channel of NVFP4 layers.  [default: max]",
)
@click.option(
    "--calibration",
    type=_FILE,
    help="Use this .json file from --save-calibration instead of --prompts.",
)
@click.option("--save-calibration", type=_FILE, help="Write the calibration to this .json file.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a description of the new variants as JSON."
)
def command(
    bundle: Path,
    *,
    recipe: str,
    prompts: Path | None,
    algorithm: Algorithm | None,
    calibration: Path | None,
    save_calibration: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Add quantized variants to BUNDLE: one for TensorRT, one with fake quantization for CPUs.

    The first is made from the bundle's bfloat16 variant; the second, the emulation, from its
    float32 variant. With --prompts, short clips are generated first to measure the range of
    the layers' inputs; without calibration the scale of every input is 1. If anything fails,
    BUNDLE is left as it was.
    """
    from sana_rt.quantize import variant as variants

    _check_options(prompts, calibration, algorithm)
    paths.check(
        {"--save-calibration": save_calibration},
        {"--prompts": prompts, "--calibration": calibration},
    )
    loaded = recipes.load(recipe)
    opened = Bundle.open(bundle)
    formats = variants.layer_formats(opened, loaded)
    table = _read(calibration, algorithm)
    with progress.shown("Reading graphs") as report:
        if prompts is not None:
            table = _calibrate(
                opened,
                prompts,
                algorithm=algorithm or "max",
                formats=formats,
                threads=threads,
                report=report,
            )
        if save_calibration is not None:
            _save(table, save_calibration)
        made = variants.quantize_bundle(bundle, loaded, table, report)
    facts = [
        _facts(made, name) for name in variants.variant_names(made.manifest, loaded.recipe.name)
    ]
    if as_json:
        output.json([each._asdict() for each in facts])
        return
    output.table(
        loaded.recipe.description,
        ("variant", "dtype", "quantized graphs>", "their files>"),
        [(each.variant, each.dtype, str(each.graphs), output.size(each.bytes)) for each in facts],
    )
    playable = [each.variant for each in facts if each.dtype == "float32"]
    for name in playable:
        click.echo(f"\nOn a CPU: sana-rt generate {bundle} PROMPT -o video.mp4 --variant {name}")


def _check_options(
    prompts: Path | None, calibration: Path | None, algorithm: Algorithm | None
) -> None:
    if prompts is not None and calibration is not None:
        raise UsageError(
            "Both --prompts and --calibration are given.", expected="at most one of the two."
        )
    if algorithm is not None and prompts is None and calibration is None:
        raise UsageError(
            "--algorithm is given without a calibration.", expected="--prompts or --calibration."
        )


def _read(path: Path | None, algorithm: Algorithm | None) -> CalibrationTable | None:
    if path is None:
        return None
    from sana_rt.quantize import calibration_table

    table = calibration_table.read(path)
    if algorithm is not None:
        table.check_algorithm(algorithm)
    return table


def _calibrate(
    bundle: Bundle,
    prompts: Path,
    *,
    algorithm: Algorithm,
    formats: Mapping[str, QuantizedFormat],
    threads: int | None,
    report: Report,
) -> CalibrationTable:
    from sana_rt.cli.recorded_passes import recorded_passes
    from sana_rt.quantize import calibrate
    from sana_rt.quantize import variant as variants

    name = variants.source_variant(bundle.manifest)
    with recorded_passes(bundle, name, prompts, threads, report) as passes:
        return calibrate.calibrate(
            bundle,
            name,
            passes,
            passes.header.prompts,
            report,
            algorithm=algorithm,
            formats=formats,
        )


def _save(table: CalibrationTable | None, path: Path) -> None:
    if table is None:
        raise UsageError(
            "--save-calibration is given without a calibration.",
            expected="--prompts or --calibration.",
        )
    from sana_rt.quantize import calibration_table

    write_bytes(path, calibration_table.encode(table))


class Facts(NamedTuple):
    """What is said of a new variant; ``graphs`` and ``bytes`` are those that no other shares."""

    variant: str
    dtype: str
    quantization: dict[str, Any]
    graphs: int
    bytes: int


def _facts(made: Bundle, name: str) -> Facts:
    variant = made.manifest.variant(name)
    plain = [each for each in made.manifest.variants.values() if each.quantization is None]
    shared = {path for each in plain for path in each.paths()}
    own = [graph for graph in variant.graphs.values() if graph.path not in shared]
    paths = [path for graph in own for path in (graph.path, *graph.weights)]
    size = sum(made.manifest.file(path).bytes for path in paths)
    quantization = msgspec.to_builtins(variant.quantization)
    return Facts(name, variant.dtype, quantization, len(own), size)
