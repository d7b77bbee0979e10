"""``sana-rt quantize``: NVFP4 variants of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sana_rt.bundle import Bundle
from sana_rt.cli import output
from sana_rt.quantize import recipe as recipes
from sana_rt.quantize import variant as variants


@click.command(epilog="Example: sana-rt quantize out/bundle --recipe mixed")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    required=True,
    help=f"One of {', '.join(recipes.names())}, or the path of a .toml file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def command(bundle: Path, *, recipe: str, as_json: bool) -> None:
    """Add quantized variants to BUNDLE: one for TensorRT, one that emulates it on any CPU.

    The first is made from the bundle's bfloat16 variant, the second from its float32 one. The
    inputs of layers are quantized with the scale 1. Nothing changes if it does not succeed.
    """
    loaded = recipes.load(recipe)
    with _progress() as report:
        made = variants.quantize_bundle(bundle, loaded, progress=report)
    facts = [_facts(made, name) for name in variants.variant_names(made.manifest, loaded)]
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


class Facts(NamedTuple):
    """What is said of a new variant; ``graphs`` and ``bytes`` are those that no other shares."""

    variant: str
    dtype: str
    recipe: str
    graphs: int
    bytes: int


def _facts(made: Bundle, name: str) -> Facts:
    variant = made.manifest.variant(name)
    plain = [each for each in made.manifest.variants.values() if each.recipe is None]
    shared = {path for each in plain for path in each.paths()}
    own = [graph for graph in variant.graphs.values() if graph.path not in shared]
    paths = [path for graph in own for path in (graph.path, *graph.weights)]
    size = sum(made.manifest.file(path).bytes for path in paths)
    return Facts(name, variant.dtype, str(variant.recipe), len(own), size)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Graphs done of all that have quantized layers, on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=output.stderr()) as bar:
        task = bar.add_task("Reading graphs", total=None)

        def report(name: str, done: int, total: int) -> None:
            bar.update(task, description=f"Quantizing {name}", completed=done, total=total)

        yield report
