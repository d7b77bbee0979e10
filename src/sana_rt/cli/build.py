"""``sana-rt build``: the plans of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sana_rt.bundle import Bundle
from sana_rt.cli import output, plan_settings
from sana_rt.engines.trt_api import Flavour, TensorRT

if TYPE_CHECKING:
    from sana_rt.engines import builder
    from sana_rt.engines.builder import Built
    from sana_rt.engines.freshness import Settings


@click.command(epilog="Example: sana-rt build out/bundle --variant bf16 --target sm120")
@click.argument("bundle", type=click.Path(path_type=Path))
@plan_settings.options
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
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
    """Build TensorRT plans of the graphs in BUNDLE, for a card that need not be in this machine.

    Plans that are current are left alone (`sana-rt explain` says which). Each finished plan is
    listed in the manifest at once: a build that was killed goes on where it stopped.
    """
    from sana_rt.engines import builder

    tensorrt = TensorRT(flavour)
    read = Bundle.read(bundle)
    name = plan_settings.only_variant(read, variant)
    settings = plan_settings.settings(
        read, tensorrt, variant=name, target=target, workload=workload, tf32=tf32
    )
    predicted = builder.predicted_peak_bytes(read, name)
    output.stderr().print(f"At most {output.size(predicted)} of memory is expected to be needed.")
    with _progress() as report:
        built = builder.build_variant(bundle, settings, tensorrt, report)
    if as_json:
        output.json(
            {
                "variant": name,
                "target": settings.target.name,
                "built": {graph: _facts(one) for graph, one in built.items()},
                "predicted_peak_bytes": predicted,
                "peak_bytes": builder.peak_bytes(),
            }
        )
        return
    _show(settings, built)
    click.echo(f"Peak memory of this process: {output.size(builder.peak_bytes())}.")


def _show(settings: Settings, built: dict[str, Built]) -> None:
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


@contextmanager
def _progress() -> Iterator[Callable[[builder.Progress], None]]:
    """Graphs done of all that are built, and what TensorRT is at, on stderr.

    Where that is no terminal, a line a graph.
    """
    console = output.stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("Looking at what is there", total=None)

        def report(state: builder.Progress) -> None:
            started = bar.tasks[task].completed != state.index or bar.tasks[task].total is None
            if started and not console.is_terminal:
                console.print(f"{state.graph} ({state.index + 1} of {state.total})")
            bar.update(
                task,
                description=f"{state.graph}: {state.phase}",
                completed=state.index,
                total=state.total,
            )

        yield report


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
