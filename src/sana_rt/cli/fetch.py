"""``sana-rt fetch``: download a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from sana_rt.cli.command import Command


@click.command(
    cls=Command,
    epilog="Example: sana-rt fetch Efficient-Large-Model/SANA-Video_2B_480p_diffusers "
    "--revision main --output out/checkpoint",
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

    Downloads only what `sana-rt export` reads, and resumes a download that was interrupted.
    The commit is recorded beside the files and in every bundle exported from them. Prints the
    command that exports the checkpoint.
    """
    from sana_rt.export.fetch import fetch

    folder = output or Path("out") / repo_id.rpartition("/")[2]
    commit = fetch(repo_id, revision, folder)
    click.echo(f"{repo_id} at {commit} is in {folder}.", err=True)
    click.echo(f"sana-rt export {folder} {folder}-bundle")
