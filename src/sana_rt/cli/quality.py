"""``sana-rt quality``: what quantization costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from sana_rt.bundle import Bundle
from sana_rt.cli import output as show
from sana_rt.cli import paths, progress
from sana_rt.cli.command import Command, overwrite_option
from sana_rt.errors import UsageError
from sana_rt.files import write_bytes
from sana_rt.manifest import Manifest

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    cls=Command,
    epilog="Example: sana-rt quality out/bundle --prompts prompts.txt -o out/quality.html",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompts", type=_FILE, required=True, help="Text file of prompts to generate, one per line."
)
@click.option(
    "-o",
    "--output",
    type=_FILE,
    required=True,
    help="Report to write, .html; the numbers go to a .json file beside it.",
)
@click.option(
    "--variants",
    help="Variants or recipes to compare, separated by commas.  [default: all variants with fake "
    "quantization]",
)
@click.option(
    "--baseline",
    help="Variant to compare with.  [default: the float32 variant that is not quantized]",
)
@click.option(
    "--scorer",
    metavar="MODULE:FUNCTION",
    help="Also score clips of each variant with your own function (docs/quantization.md).  "
    "[default: no scores]",
)
@click.option(
    "--scored",
    type=click.IntRange(min=1),
    help="Number of prompts that the scorer generates.  [default: all]",
)
@click.option("--height", type=int, help="Height of the clips in pixels.  [default: the model's]")
@click.option("--width", type=int, help="Width of the clips in pixels.  [default: the model's]")
@click.option(
    "--num-frames", type=int, help="Length of each clip in frames.  [default: the model's]"
)
@click.option(
    "--num-inference-steps",
    type=int,
    help="Denoising steps per clip, 1 to 1000.  [default: the model's]",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the first prompt's noise, 0 or more; each later prompt has the next seed.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print the numbers of the report as JSON.")
def command(
    bundle: Path,
    *,
    prompts: Path,
    output: Path,
    variants: str | None,
    baseline: str | None,
    scorer: str | None,
    scored: int | None,
    seed: int,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
    **sizes: int | None,
) -> None:
    """Generate the same clips with several variants of BUNDLE, and measure how they differ.

    The report shows PSNR, SSIM, frames side by side, and the error of the latents at each step,
    both accumulated and of that step alone. The baseline's first clip is generated twice, and
    must be the same both times.
    """
    from sana_rt.benchmarks.quality import compare, page
    from sana_rt.benchmarks.quality import scorer as scorers
    from sana_rt.cli import prompts_file
    from sana_rt.runtime.request import for_model

    paths.check_suffix("--output", output, ".html")
    if scored is not None and scorer is None:
        raise UsageError("--scored is given without --scorer.", expected="both, or neither.")
    paths.check(
        {"--output": output, "the JSON file beside it": output.with_suffix(".json")},
        {"--prompts": prompts},
        overwrite=overwrite,
    )
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    lines, _ = prompts_file.read(prompts)
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    requests = [
        for_model(manifest.model, {**given, "prompt": line, "seed": seed + index})
        for index, line in enumerate(lines)
    ]
    baseline = _baseline(manifest) if baseline is None else baseline.strip()
    names = _emulations(manifest, baseline) if variants is None else _variants(manifest, variants)
    with progress.shown("Loading") as report:
        comparison = compare.compare(
            opened,
            baseline,
            names,
            requests,
            scorer=scorers.load(scorer) if scorer is not None else None,
            scored=scored,
            threads=threads,
            progress=report,
        )
    write_bytes(output, page.render(comparison).encode())
    data = msgspec.json.format(msgspec.json.encode(comparison.report), indent=2) + b"\n"
    write_bytes(output.with_suffix(".json"), data)
    if as_json:
        show.json({"output": str(output), "report": comparison.report})
        return
    _show(comparison.report)
    click.echo(f"\n{output}")


def _variants(manifest: Manifest, given: str) -> list[str]:
    """The variants called so, or what a CPU plays for the recipes called so."""
    names = [name.strip() for name in given.split(",")]
    if not all(names):
        raise UsageError(
            f"--variants {given!r} has an empty name.",
            expected=f"names separated by commas, of {', '.join(manifest.variants)}.",
        )
    emulations = {name: manifest.of_recipe(name, "emulation") for name in names}
    played = {name: each[0] for name, each in emulations.items() if each}
    return [played.get(name, name) for name in names]


def _emulations(manifest: Manifest, baseline: str) -> list[str]:
    weights = manifest.variant(baseline).source.sha256
    names = [
        name
        for name, variant in manifest.variants.items()
        if variant.quantization is not None
        and variant.quantization.form == "emulation"
        and variant.source.sha256 == weights
    ]
    if not names:
        raise UsageError(
            f"The bundle has no quantized variant of {baseline!r} that a CPU can play.",
            expected="an emulation (fake quantization).",
            remedy="make one with `sana-rt quantize`.",
        )
    return names


def _baseline(manifest: Manifest) -> str:
    found = [
        (bool(variant.source.loras), name)
        for name, variant in manifest.variants.items()
        if variant.quantization is None and variant.dtype == "float32"
    ]
    if found:
        return min(found, key=lambda each: each[0])[1]
    raise UsageError(
        "The bundle has no float32 variant to compare with.",
        expected="a float32 variant, or --baseline.",
        remedy="export one with `sana-rt export --dtype fp32`.",
    )


def _show(report: Any) -> None:
    show.table(
        f"{len(report.prompts)} clips against {report.baseline}",
        ("variant", "PSNR, dB>", "worst>", "SSIM>", "last latents>", "per step, forced>"),
        [
            (
                each.variant,
                f"{each.psnr:.2f}",
                f"{each.worst_psnr:.2f}",
                f"{each.ssim:.4f}",
                f"{each.free_error[-1]:.3g}",
                f"{sum(each.forced_error) / len(each.forced_error):.3g}",
            )
            for each in report.variants
        ],
    )

    if report.scores:
        first = next(iter(report.scores.values()))
        rows = [
            (variant, *(f"{score.fraction:.1%}" for score in scores.values()))
            for variant, scores in report.scores.items()
        ]
        count = next(iter(first.values())).n
        show.table(
            f"Scores of {count} clips by {report.scorer}",
            ("variant", *map("{}>".format, first)),
            rows,
        )
