"""``sana-rt bound``: what a model could reach on a card, at best."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sana_rt.cli import output, plans_view
from sana_rt.cli.command import Command
from sana_rt.engines import cards
from sana_rt.errors import UsageError
from sana_rt.model_spec import PRESETS
from sana_rt.quantize import recipe as recipes

if TYPE_CHECKING:
    from sana_rt.benchmarks.bound import BoundReport, BoundSetup

#: Names of models, with and without the family's.
_MODELS: Final = {name.removeprefix("sana-video-"): name for name in PRESETS} | {
    name: name for name in PRESETS
}
_DEVICES: Final = [
    name for name, card in cards.CARDS.items() if cards.target_of(card.compute_capability)
]
_KERNELS_SHOWN: Final = 15


@click.command(
    cls=Command, epilog="Example: sana-rt bound --model sana-video-2b-480p --device rtx5090"
)
@click.option("--model", required=True, help=f"Model: {', '.join(PRESETS)}.")
@click.option(
    "--recipe",
    help=f"Recipe to quantize with: {', '.join(recipes.names())}, or the path of a .toml file.  "
    "[default: nothing is quantized]",
)
@click.option(
    "--device",
    default="rtx5090",
    show_default=True,
    help=f"Card to compute the bound for: {', '.join(_DEVICES)}.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Folder to keep the graphs and build logs in.  [default: they are deleted]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
def command(
    model: str, *, recipe: str | None, device: str, keep: Path | None, as_json: bool
) -> None:
    """Compute a lower bound on the seconds that a whole video takes on a card.

    Exports one full-width block and the other graphs with random weights, compiles them for
    the card, and counts the FLOPs and the memory traffic of their kernels. A real run takes
    longer. If the recipe treats blocks differently, one of each kind is compiled. The card need
    not be in this machine.
    """
    from sana_rt.benchmarks import bound

    setup = _setup(model, recipe, device)
    with tempfile.TemporaryDirectory() as temporary, output.stderr().status("Starting") as status:
        report = bound.measure(setup, keep or Path(temporary), status.update)
    if as_json:
        output.json(report)
    else:
        _show(report)


def _setup(model: str, recipe: str | None, device: str) -> BoundSetup:
    from sana_rt.benchmarks import bound
    from sana_rt.engines.trt_api import TensorRT

    if model not in _MODELS:
        raise UsageError(
            f"There is no model {model!r} to bound.", expected=f"one of {', '.join(_MODELS)}."
        )
    loaded = recipes.load(recipe) if recipe else recipes.UNQUANTIZED
    card = cards.card(device)
    target = cards.target_of(card.compute_capability)
    if target is None:
        raise UsageError(
            f"{card.name} has the compute capability {card.compute_capability}, for which "
            "TensorRT-RTX builds no plans.",
            expected=f"one of {', '.join(_DEVICES)}.",
        )
    return bound.BoundSetup(PRESETS[_MODELS[model]], loaded, card, TensorRT("rtx"), target)


def _show(report: BoundReport) -> None:
    output.table(
        f"Bounds for {report.model} in {report.recipe} on {report.device}",
        ("", ""),
        [
            ("method", report.rule),
            ("peaks", report.source),
            ("plans", report.tensorrt),
            ("blocks", f"{report.blocks_seconds:.2f} s at least"),
            ("everything", f"{report.total_seconds:.2f} s at least, for {report.frames} frames"),
            ("frames per second", f"{report.frames_per_second:.1f} at most"),
            ("frames per second, blocks alone", f"{report.blocks_frames_per_second:.1f} at most"),
            ("memory traffic per block", f"{report.bytes_per_block / 1e9:.1f} GB"),
            ("compute per block", f"{report.flops_per_block / 1e12:.2f} TFLOP"),
            ("share of FLOPs in FP4", f"{report.fp4_flop_share:.1%}"),
            ("activations", output.size(report.arena_bytes)),
            ("not included", ", ".join(report.missing) or "nothing"),
        ],
    )
    output.table(
        "By graph",
        ("graph", "part", "layers>", "runs>", "bound, each>", "bound, all>", "share>", ""),
        [
            (
                row.graph,
                row.part,
                str(row.layers),
                str(row.runs),
                f"{row.seconds_each * 1e3:.3f} ms",
                f"{row.seconds:.3f} s",
                f"{row.seconds / report.total_seconds:.1%}",
                row.note,
            )
            for row in report.rows
        ],
    )
    phases = [(phase.phase, phase.bytes) for phase in report.phases]
    phases += [(f"{other.phase}, in windows", other.bytes) for other in report.other_decoding]
    names = dict.fromkeys(name for _, sizes in phases for name in sizes)
    output.table(
        f"Device memory by phase; {output.size(report.together_bytes)} with all loaded",
        ("", *(f"{phase}>" for phase, _ in phases)),
        [(name, *(output.size(sizes.get(name, 0)) for _, sizes in phases)) for name in names],
    )
    for graph in dict.fromkeys(row.graph for row in report.block_kernels):
        kernels = tuple(row for row in report.block_kernels if row.graph == graph)
        title = f"The {_KERNELS_SHOWN} heaviest kernels of {graph}"
        plans_view.kernels(title, kernels[:_KERNELS_SHOWN])
