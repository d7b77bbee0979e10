"""``sana-rt demo``: the whole way, small."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import click

from sana_rt.cli import LazyCommand, output

PROMPT: Final = "a red circle moving to the right"
_SHEET_COLUMNS: Final = 3
_SHEET_PICTURES: Final = 9


@click.command(epilog='Example: sana-rt demo --output out/demo "a blue square standing still"')
@click.argument("prompt", default=PROMPT)
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/demo"),
    show_default=True,
    help="Where the files go.",
)
@click.pass_context
def command(ctx: click.Context, prompt: str, folder: Path) -> None:
    """Make a small checkpoint, export it, and play PROMPT from the bundle, on the CPU.

    The weights are random numbers from a fixed seed: the video is a pattern and does not show
    the prompt. What it shows is that each part works here. Each step prints the command that
    does the same.
    """
    from sana_rt.export.seeded import write_checkpoint

    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    video, sheet = folder / "video.mp4", folder / "contact_sheet.png"
    click.echo("Step 1 of 4: a small checkpoint with seeded random weights", err=True)
    write_checkpoint(checkpoint, seed=0)
    _run(ctx, "Step 2 of 4: the bundle", "export", checkpoint, bundle)
    _run(ctx, "Step 3 of 4: the video", "generate", bundle, prompt, "--output", video)
    click.echo("Step 4 of 4: a contact sheet of the video", err=True)
    _draw_sheet(video, sheet)
    output.table(
        "Files",
        ("", ""),
        [
            ("checkpoint", str(checkpoint)),
            ("bundle", f"{bundle}  (sana-rt inspect {shlex.quote(str(bundle))})"),
            ("video", str(video)),
            ("contact sheet", str(sheet)),
        ],
    )


def _run(ctx: click.Context, title: str, name: str, *arguments: str | Path) -> None:
    """Run another command as the shell would, and say how."""
    words = [str(argument) for argument in arguments]
    click.echo(f"{title}\n  $ sana-rt {shlex.join([name, *words])}", err=True)
    with LazyCommand(name).make_context(name, words, parent=ctx) as inner:
        inner.command.invoke(inner)


def _draw_sheet(video: Path, sheet: Path) -> None:
    from sana_rt.runtime.frames import contact_sheet, read_video, write_png

    frames = list(read_video(video))
    count = min(len(frames), _SHEET_PICTURES)
    last = max(count - 1, 1)
    chosen = [frames[index * (len(frames) - 1) // last] for index in range(count)]
    write_png(sheet, contact_sheet(chosen, _SHEET_COLUMNS))
