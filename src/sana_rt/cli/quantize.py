"""``sana-rt quantize``: NVFP4 variants of a bundle."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
import msgspec

from sana_rt.bundle import Bundle
from sana_rt.cli import output, paths, progress, prompts_file
from sana_rt.cli.command import Command, overwrite_option
from sana_rt.errors import UsageError
from sana_rt.files import write_bytes
from sana_rt.manifest import Form, Source
from sana_rt.quantize import recipe as recipes

if TYPE_CHECKING:
    from sana_rt.quantize.calibration_table import Algorithm, CalibrationTable
    from sana_rt.quantize.quantized_layer import QuantizedFormat
    from sana_rt.quantize.recipe import LoadedRecipe

Report = Callable[[str, int, int], None]
#: What each form is made from: the data type, and what `sana-rt export --dtype` calls it.
_BASES: Final[dict[Form, tuple[str, str]]] = {
    "device": ("bfloat16", "bf16"),
    "emulation": ("float32", "fp32"),
}
_FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=Command, epilog="Example: sana-rt quantize out/bundle --recipe mixed")
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
@click.option(
    "--variant",
    help="Variant whose weights to quantize, such as one with LoRAs.  [default: the checkpoint's]",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option("--force", is_flag=True, help="Quantize again what is current.")
@overwrite_option
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
    variant: str | None,
    threads: int | None,
    force: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Add quantized variants to BUNDLE: one for TensorRT, one with fake quantization for CPUs.

    The first is made from the bundle's bfloat16 variant; the second, the emulation, from its
    float32 variant. With --prompts, short clips are generated first to measure the range of
    the layers' inputs; without calibration the scale of every input is 1. If anything fails,
    BUNDLE is left as it was.

    Of a --variant with LoRAs, --prompts measures it itself; --calibration may be of the checkpoint
    without them, and the manifest says which it is.

    Nothing is done if the variants are current: their files are intact, and the checkpoint, the
    recipe, the calibration (the algorithm and the prompts, or the file), this program's code and
    the versions of its packages are those that they were made with.
    """
    from sana_rt.quantize import variant as variants

    _check_options(prompts, calibration, algorithm, save_calibration)
    paths.check(
        {"--save-calibration": save_calibration},
        {"--prompts": prompts, "--calibration": calibration},
        overwrite=overwrite,
    )
    loaded = recipes.load(recipe)
    opened = Bundle.open(bundle)
    source = variants.source_variant(opened.manifest, variant)
    formats = variants.layer_formats(opened, loaded, source)
    table = _read(calibration, algorithm)
    asked = _Calibration(prompts, algorithm or "max", save_calibration, threads)
    with progress.shown("Reading graphs") as report:
        weights = opened.manifest.variant(source).source.sha256
        reasons = variants.reasons(opened, loaded, asked.known(table, weights), source)
        made = opened
        if force or save_calibration is not None or any(reasons.values()):
            if prompts is not None:
                table = asked.measure(opened, source, formats, report)
            made = variants.quantize_bundle(bundle, loaded, table, report, source)
        else:
            output.note(f"Current: {', '.join(reasons)}; --force quantizes again.")
    names = variants.variant_names(made.manifest, loaded.recipe.name, source)
    facts = [_facts(made, name) for name in names]
    _tell_missing(made, names, loaded, made.manifest.variant(source).source)
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
    prompts: Path | None,
    calibration: Path | None,
    algorithm: Algorithm | None,
    save_calibration: Path | None,
) -> None:
    if prompts is not None and calibration is not None:
        raise UsageError(
            "Both --prompts and --calibration are given.", expected="at most one of the two."
        )
    if algorithm is not None and prompts is None and calibration is None:
        raise UsageError(
            "--algorithm is given without a calibration.", expected="--prompts or --calibration."
        )
    if save_calibration is not None and prompts is None:
        raise UsageError(
            "--save-calibration is given without --prompts.",
            expected="prompts to calibrate on; what --calibration reads is a file already.",
        )


def _read(path: Path | None, algorithm: Algorithm | None) -> CalibrationTable | None:
    if path is None:
        return None
    from sana_rt.quantize import calibration_table

    table = calibration_table.read(path)
    if algorithm is not None:
        table.check_algorithm(algorithm)
    return table


@dataclass(frozen=True)
class _Calibration:
    """How the ranges of inputs are to be measured, if ``prompts`` are given."""

    prompts: Path | None
    algorithm: Algorithm
    save: Path | None
    threads: int | None

    def known(self, table: CalibrationTable | None, weights: str) -> dict[str, Any]:
        """What a manifest will say of it, as far as that is known before the work."""
        if table is not None:
            return msgspec.structs.asdict(table.record)
        if self.prompts is None:
            return {}
        _, sha256 = prompts_file.read(self.prompts)
        return {
            "algorithm": self.algorithm,
            "prompts_sha256": sha256,
            "source_sha256": weights,
        }

    def measure(
        self,
        bundle: Bundle,
        name: str,
        formats: Mapping[str, QuantizedFormat],
        report: Report,
    ) -> CalibrationTable:
        """Play the prompts on the variant ``name``, measure, and keep the table if wanted."""
        from sana_rt.cli.recorded_passes import recorded_passes
        from sana_rt.quantize import calibrate, calibration_table

        assert self.prompts is not None
        with recorded_passes(bundle, name, self.prompts, self.threads, report) as passes:
            table = calibrate.calibrate(
                bundle,
                name,
                passes,
                passes.header.prompts,
                report,
                algorithm=self.algorithm,
                formats=formats,
            )
        if self.save is not None:
            write_bytes(self.save, calibration_table.encode(table))
        return table


def _tell_missing(made: Bundle, names: list[str], loaded: LoadedRecipe, source: Source) -> None:
    """Say which of the two variants is not among ``names``, why, and what makes both."""
    made_forms = {_form(made, name) for name in names}
    loras = [word for each in source.loras for word in ("--lora", str(each))]
    for form, (dtype, option) in _BASES.items():
        if form not in made_forms:
            name = source.variant_name(recipes.variant_name(loaded.recipe, form))
            words = ["CHECKPOINT", str(made.root), "--dtype", option, *loras]
            output.note(
                f"{name} was not made: the bundle has no {dtype} variant of these weights to make "
                f"it from. For both, run `sana-rt export {shlex.join(words)}` with the bundle's "
                "checkpoint, then this command again."
            )


def _form(made: Bundle, name: str) -> Form:
    quantization = made.manifest.variant(name).quantization
    assert quantization is not None
    return quantization.form


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
