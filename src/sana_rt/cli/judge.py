"""``sana-rt judge``: how often clips show what their prompts say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sana_rt.cli import output

if TYPE_CHECKING:
    from examples.shapes.judge import Verdict
    from examples.shapes.world import Language


@click.command(epilog="Example: sana-rt judge out/shapes --lang zh --json")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", help="Which numerical version of the bundle to play.")
@click.option("--backend", default="auto", show_default=True, help="What to play it on.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option(
    "--lang",
    type=click.Choice(["en", "zh"]),
    default="en",
    show_default=True,
    help="Language of the prompts.",
)
@click.option("--seconds", type=click.FloatRange(min=1), help="Length; the last 10 s are judged.")
@click.option("--prompts", type=click.IntRange(min=1), help="Only so many, evenly picked.")
@click.option("--seed", default=0, show_default=True, help="Of the first clip's noise.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write frames of every clip (PNG).")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    bundle: Path,
    *,
    variant: str | None,
    backend: str,
    threads: int | None,
    lang: Language,
    seconds: float | None,
    prompts: int | None,
    seed: int,
    sheet: Path | None,
    as_json: bool,
) -> None:
    """Play held-out prompts of the `shapes` world with BUNDLE and read the clips.

    The prompts name combinations of colour, shape and direction that no training clip showed.
    Intervals are Wilson's, at 95 %.
    """
    from examples.shapes import judge

    from sana_rt.runtime.images import write_png
    from sana_rt.runtime.session import Session

    session = Session.open(
        bundle, variant=variant, backend=backend, threads=threads, keep_text_encoder=True
    )
    trial = judge.Trial(lang, seconds, prompts, seed)
    with output.stderr().status("Playing held-out prompts") as status:
        verdict = judge.run(session, trial, lambda done, total: status.update(f"{done}/{total}"))
    if sheet is not None:
        write_png(sheet, judge.contact_sheet(verdict.clips))
    if as_json:
        output.json({**verdict.scores, **verdict.steadiness})
    else:
        _show(verdict)


def _show(verdict: Verdict) -> None:
    rows = [
        (name, f"{score.accuracy:.1%}", f"{score.low:.1%}", f"{score.high:.1%}", str(score.n))
        for name, score in verdict.scores.items()
    ]
    output.table("Held-out prompts followed", ("", "right>", "low>", "high>", "clips>"), rows)
    steady = [(name, f"{value:.3f}") for name, value in verdict.steadiness.items()]
    output.table("Temporal stability", ("", "mean>"), steady)
