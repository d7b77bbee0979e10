"""``sana-rt bench``: how fast variants are, beside each other and beside diffusers."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sana_rt.bundle import Bundle
from sana_rt.cli import output as show
from sana_rt.cli import paths, progress
from sana_rt.cli.command import Command, overwrite_option
from sana_rt.errors import UsageError

if TYPE_CHECKING:
    from sana_rt.benchmarks.speed.report import Report, SideReport
    from sana_rt.manifest import Manifest
    from sana_rt.model_spec import ModelSpec
    from sana_rt.runtime.request import Request

PROMPT: Final = "a red circle moving slowly to the right on a grey background"
_ROUNDS: Final = 5
_QUICK_ROUNDS: Final = 2
_QUICK_STEPS: Final = 4


@click.command(
    cls=Command, epilog="Example: sana-rt bench out/bundle --variants bf16,nvfp4-max -o out/bench"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--variants",
    help="Variants to measure, separated by commas.  [default: all that run here]",
)
@click.option("--baseline", help="Variant to compare with.  [default: the first of the variants]")
@click.option(
    "--workload",
    help="Size to measure: the name of a workload, or the path of a .toml file "
    "(docs/engines.md).  [default: the model's defaults]",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Text file of prompts, one per line; each is generated in every round.  [default: one "
    "prompt]",
)
@click.option(
    "--num-inference-steps", type=int, help="Denoising steps per clip.  [default: the model's]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the first prompt.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    help=f"Rounds; each variant loads and plays once per round, in turns.  [default: {_ROUNDS}]",
)
@click.option(
    "--quick",
    is_flag=True,
    help=f"Measure at most {_QUICK_STEPS} steps in {_QUICK_ROUNDS} rounds, to see if it works.",
)
@click.option(
    "--against",
    type=click.Choice(["diffusers"]),
    help="Also measure the diffusers pipeline on the same device, eager and with torch.compile.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Checkpoint the bundle was exported from, a diffusers folder; for --against.",
)
@click.option(
    "--compile-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Time after which a round of the compiled pipeline is given up.",
)
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="What to run the graphs with; see `sana-rt generate --help`.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/bench"),
    show_default=True,
    help="Folder to write index.html and report.json to.",
)
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    bundle: Path,
    *,
    variants: str | None,
    baseline: str | None,
    workload: str | None,
    prompts: Path | None,
    num_inference_steps: int | None,
    seed: int,
    repeats: int | None,
    quick: bool,
    against: str | None,
    checkpoint: Path | None,
    compile_limit: float,
    backend: str,
    threads: int | None,
    output: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure how long variants of BUNDLE take, and how much memory.

    Loading, text, a denoising step, all steps, decoding, the first frame and the whole clip are
    timed separately, each with its median and spread. In every round each variant runs in a
    process of its own, after a warm-up, and they take turns. Then the graphs are timed one by
    one. docs/benchmarks.md explains the report.
    """
    from sana_rt.benchmarks.speed import bench, page, sides
    from sana_rt.benchmarks.speed import report as reports

    data, html = output / "report.json", output / "index.html"
    outputs = {"--output": data, "the page in it": html}
    paths.check(outputs, {"--prompts": prompts}, overwrite=overwrite)
    if (against is None) != (checkpoint is None):
        raise UsageError(
            "One of --against and --checkpoint is given without the other.",
            expected="both, or neither.",
        )
    opened = Bundle.open(bundle)
    reference = None if checkpoint is None else sides.Reference(checkpoint, compile_limit)
    model = opened.manifest.model
    names = _variants(opened.manifest, variants, baseline)
    setup = sides.Setup(
        opened,
        names,
        _requests(model, prompts, workload, num_inference_steps, seed, quick=quick),
        rounds=repeats or (_QUICK_ROUNDS if quick else _ROUNDS),
        backend=backend,
        threads=threads,
        required=names if variants else names[: baseline is not None],
        reference=reference,
    )
    with progress.shown("Starting") as shown:
        found = bench.measure(
            setup, command=shlex.join(["sana-rt", *sys.argv[1:]]), quick=quick, progress=shown
        )
    reports.write(found.report, data)
    page.write(found, html)
    if as_json:
        show.json(found.report)
        return
    _show(found.report)
    click.echo(f"\n{html}")


def _variants(manifest: Manifest, given: str | None, baseline: str | None) -> tuple[str, ...]:
    """The variants, the baseline first; :class:`ManifestError` for one that is not there."""
    names = list(manifest.variants) if given is None else [n.strip() for n in given.split(",")]
    if not all(names):
        raise UsageError(
            f"--variants {given!r} has an empty name.",
            expected=f"names separated by commas, of {', '.join(manifest.variants)}.",
        )
    ordered = dict.fromkeys([*([baseline] if baseline else []), *names])
    for name in ordered:
        manifest.variant(name)
    return tuple(ordered)


def _requests(
    model: ModelSpec,
    prompts: Path | None,
    workload: str | None,
    steps: int | None,
    seed: int,
    *,
    quick: bool,
) -> tuple[Request, ...]:
    from sana_rt.benchmarks.speed import sides
    from sana_rt.cli import prompts_file
    from sana_rt.engines import workloads

    lines = (PROMPT,) if prompts is None else prompts_file.read(prompts)[0]
    if quick and model.sampling.solver != "renoise":  # which has the model's own steps
        default = model.sampling.num_inference_steps
        steps = min(default if steps is None else steps, _QUICK_STEPS)
    return sides.requests(
        model,
        lines,
        workload=None if workload is None else workloads.load(workload),
        seed=seed,
        **({} if steps is None else {"num_inference_steps": steps}),
    )


def _show(report: Report) -> None:
    title = (
        f"{report.work.model}, median of {report.rounds} rounds (ratio to {report.baseline.name})"
    )
    show.table(
        title,
        ("", *(f"{side.name}>" for side in report.sides)),
        [
            *(
                (boundary, *(_time(side, boundary) for side in report.sides))
                for boundary in _boundaries(report)
            ),
            ("host memory, peak", *(_size(side.host_peak_bytes) for side in report.sides)),
            ("card memory, peak", *(_size(side.device_bytes) for side in report.sides)),
        ],
    )
    if report.not_measured:
        reasons = [(name, why.splitlines()[0]) for name, why in report.not_measured.items()]
        show.table("Not measured", ("", ""), reasons)


def _boundaries(report: Report) -> list[str]:
    from sana_rt.benchmarks.speed.turn import BOUNDARIES

    measured = {name for side in report.sides for name in side.boundaries}
    return [name for name in BOUNDARIES if name in measured]


def _time(side: SideReport, boundary: str) -> str:
    from sana_rt.benchmarks import units

    measured = side.boundaries.get(boundary)
    if measured is None:
        return "–"
    ratio = "" if measured.ratio is None else f" ({measured.ratio.median:.2f})"
    return f"{units.seconds(measured.spread.median)}{ratio}"


def _size(count: int | None) -> str:
    return "not available" if count is None else show.size(count)
