"""``sana-rt compare``: two reports of ``sana-rt bench`` beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sana_rt.cli import output
from sana_rt.cli.command import Command

if TYPE_CHECKING:
    from sana_rt.benchmarks.speed.comparison import Comparison

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(cls=Command, epilog="Example: sana-rt compare before/report.json after/report.json")
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option(
    "--boundary",
    "boundaries",
    multiple=True,
    help="Boundary to show and to judge, such as clip; can be repeated.  [default: all]",
)
@click.option(
    "--fail-above",
    type=click.FloatRange(min=0, min_open=True),
    metavar="RATIO",
    help="Exit with 1 if anything shown takes more than RATIO times as long as before.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    before: Path,
    after: Path,
    *,
    boundaries: tuple[str, ...],
    fail_above: float | None,
    as_json: bool,
) -> None:
    """Compare the times of two reports of `sana-rt bench`, BEFORE and AFTER.

    Both must be of the same work: size, frames, steps, guidance, solver and prompts. A ratio is
    the time AFTER over the time BEFORE. Conditions that differ (card, processor, versions) are
    listed.
    """
    from sana_rt.benchmarks.speed import comparison, report

    found = comparison.compare(report.read(before), report.read(after)).only(boundaries)
    if as_json:
        output.json(found)
    else:
        _show(found, before, after)
    slower = found.slower(fail_above) if fail_above is not None else ()
    for row in slower:
        click.echo(
            f"{row.boundary} of {row.side} takes {row.ratio.median:.3g} times as long as before, "
            f"more than {fail_above:g}.",
            err=True,
        )
    if slower:
        ctx.exit(1)


def _show(found: Comparison, before: Path, after: Path) -> None:
    from sana_rt.benchmarks import units

    output.table(
        f"{after} over {before}",
        ("side", "boundary", "before>", "after>", "ratio>", "quartiles>", "extremes>"),
        [
            (
                row.side,
                row.boundary,
                units.seconds(row.before),
                units.seconds(row.after),
                f"{row.ratio.median:.3f}",
                f"{row.ratio.lower_quartile:.3f} to {row.ratio.upper_quartile:.3f}",
                f"{row.ratio.least:.3f} to {row.ratio.most:.3f}",
            )
            for row in found.rows
        ],
    )
    differing = [
        (name, str(values[0]), str(values[1])) for name, values in found.conditions.items()
    ]
    if differing:
        output.table("Conditions that differ", ("", "before", "after"), differing)
    for names, where in ((found.only_before, before), (found.only_after, after)):
        if names:
            click.echo(f"\nOnly in {where}: {', '.join(names)}")
