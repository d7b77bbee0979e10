"""``sana-rt demo``: the whole way, small."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any, Final

import click

from sana_rt.bundle import Bundle
from sana_rt.cli import LazyCommand, output
from sana_rt.cli.command import Command, json_option

PROMPT: Final = "a red circle moving slowly to the right on a grey background"


@click.command(
    cls=Command, epilog='Example: sana-rt demo --output out/demo "a blue square standing still"'
)
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
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the folder's bundle if it is of another --checkpoint.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    prompt: str,
    folder: Path,
    checkpoint: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Export a small checkpoint to a bundle and generate a video of PROMPT from it, on the CPU.

    Without --checkpoint the weights are random numbers from a fixed seed. The video is then a
    pattern that does not show the prompt, but proves that each part works on this machine. A
    bundle of another checkpoint that is in the folder is played as it is. Each step prints the
    command that does the same.

    What is current is not exported again. The folder's video.mp4 and contact_sheet.png are
    replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bundle, video, sheet = folder / "bundle", folder / "video.mp4", folder / "contact_sheet.png"
    made: dict[str, Any] = {"bundle": str(bundle), "export": None}
    source = checkpoint or _seeded(folder / "checkpoint")
    if checkpoint is None and (other := _other(bundle, source)):
        output.note(f"{bundle} is of {other}, and is played as it is; --checkpoint decides anew.")
    else:
        replacing = ["--overwrite"] if overwrite else []
        made["export"] = _run(ctx, "A bundle", "export", source, bundle, *replacing)
    outputs = ("--output", video, "--contact-sheet", sheet, "--overwrite")
    made["generate"] = _run(ctx, "A video", "generate", bundle, prompt, *outputs)
    if as_json:
        output.json(made)
        return
    output.table(
        "Files",
        ("", ""),
        [
            ("bundle", f"{bundle}  (sana-rt inspect {shlex.quote(str(bundle))})"),
            ("video", str(video)),
            ("contact sheet", str(sheet)),
        ],
    )


def _seeded(folder: Path) -> Path:
    from sana_rt.export.seeded import write_checkpoint

    output.note("A small checkpoint with seeded random weights")
    return write_checkpoint(folder, seed=0)


def _other(bundle: Path, checkpoint: Path) -> str | None:
    """The checkpoint that a bundle is of, if it is not of this one."""
    from sana_rt.export.checkpoint import open_checkpoint

    if not Bundle.exists(bundle):
        return None
    source = open_checkpoint(checkpoint).source
    found = [variant.source for variant in Bundle.read(bundle).manifest.variants.values()]
    return None if source.base in {each.base for each in found} else found[0].checkpoint


def _run(ctx: click.Context, title: str, name: str, *arguments: str | Path) -> dict[str, Any]:
    """Run another command as the shell would, and say how; returns its ``--json``."""
    words = [str(argument) for argument in arguments]
    output.note(f"{title}\n  $ sana-rt {shlex.join([name, *words])}")
    with (
        contextlib.redirect_stdout(io.StringIO()) as shown,
        LazyCommand(name).make_context(name, [*words, "--json"], parent=ctx) as inner,
    ):
        inner.command.invoke(inner)
    made: dict[str, Any] = json.loads(shown.getvalue())
    return made
