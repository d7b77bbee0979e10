"""``sana-rt demo``: the whole way, small."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import click

from sana_rt.cli import LazyCommand, output

PROMPT: Final = "a red circle moving slowly to the right on a grey background"
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
    help="Folder to write to.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True),
    help="Checkpoint to start from.  [default: a small one with random weights]",
)
@click.pass_context
def command(ctx: click.Context, prompt: str, folder: Path, checkpoint: Path | None) -> None:
    """Export a small checkpoint to a bundle and generate a video of PROMPT from it, on the CPU.

    Without --checkpoint the weights are random numbers from a fixed seed. The video is then a
    pattern that does not show the prompt, but proves that each part works on this machine. Each
    step prints the command that does the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoint or _seeded(folder / "checkpoint")
    bundle, video, sheet = folder / "bundle", folder / "video.mp4", folder / "contact_sheet.png"
    _run(ctx, "A bundle", "export", checkpoint, bundle)
    _run(ctx, "A video", "generate", bundle, prompt, "--output", video)
    click.echo("A contact sheet of the video", err=True)
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


def _seeded(folder: Path) -> Path:
    from sana_rt.export.seeded import write_checkpoint

    click.echo("A small checkpoint with seeded random weights", err=True)
    return write_checkpoint(folder, seed=0)


def _run(ctx: click.Context, title: str, name: str, *arguments: str | Path) -> None:
    """Run another command as the shell would, and say how."""
    words = [str(argument) for argument in arguments]
    click.echo(f"{title}\n  $ sana-rt {shlex.join([name, *words])}", err=True)
    with LazyCommand(name).make_context(name, words, parent=ctx) as inner:
        inner.command.invoke(inner)


def _draw_sheet(video: Path, sheet: Path) -> None:
    from sana_rt.runtime.images import contact_sheet, write_png
    from sana_rt.runtime.video import read_video

    frames = list(read_video(video))
    count = min(len(frames), _SHEET_PICTURES)
    last = max(count - 1, 1)
    chosen = [frames[index * (len(frames) - 1) // last] for index in range(count)]
    write_png(sheet, contact_sheet(chosen, _SHEET_COLUMNS))
