"""``sana-rt fetch``: download a checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sana_rt.cli import output as show
from sana_rt.cli.command import Command

if TYPE_CHECKING:
    from sana_rt.export.fetch import Snapshot


@click.command(
    cls=Command,
    epilog="Example: sana-rt fetch Efficient-Large-Model/SANA-Video_2B_480p_diffusers "
    "--output out/checkpoint",
)
@click.argument("repo_id", metavar="HUB_ID")
@click.option(
    "--revision",
    default="main",
    show_default=True,
    help="Commit, branch or tag to download; only a commit always means the same files.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to download to.  [default: out/<model name>]",
)
def command(repo_id: str, *, revision: str, output: Path | None) -> None:
    """Download the checkpoint HUB_ID from the Hugging Face Hub at one revision.

    Downloads only what `sana-rt export` reads, after it has said under which licence that is,
    and resumes a download that was interrupted. The commit and the licence are recorded beside the
    files, the commit also in every bundle exported from them. Prints the command that exports the
    checkpoint. No other command uses the network.
    """
    from sana_rt.export.fetch import fetch

    folder = output or Path("out") / repo_id.rpartition("/")[2]
    commit = fetch(repo_id, revision, folder, announce=_announce)
    show.note(f"{repo_id} at {commit} is in {folder}.")
    click.echo(shlex.join(["sana-rt", "export", str(folder), f"{folder}-bundle"]))


def _announce(snapshot: Snapshot) -> None:
    show.note(
        f"Downloading {snapshot.repo_id} at {snapshot.revision}.\n"
        f"Licence: {snapshot.license or 'none is stated on its model card'}."
    )
