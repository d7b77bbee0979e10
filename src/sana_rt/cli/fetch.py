"""``sana-rt fetch``: download a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="Example: sana-rt fetch Efficient-Large-Model/SANA-Video_2B_480p_diffusers "
    "--revision main --output out/checkpoint"
)
@click.argument("repo_id", metavar="HUB_ID")
@click.option(
    "--revision", default="main", show_default=True, help="A commit; branches and tags move."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files go.  [default: out/<name of the model>]",
)
def command(repo_id: str, *, revision: str, output: Path | None) -> None:
    """Download the checkpoint HUB_ID from the Hugging Face Hub at one revision.

    Only what `sana-rt export` reads is downloaded; a download that was interrupted goes on
    where it stopped. The commit is written beside the files and into every bundle made of
    them. Prints the command that exports the checkpoint.
    """
    from sana_rt.export.fetch import fetch

    folder = output or Path("out") / repo_id.rpartition("/")[2]
    commit = fetch(repo_id, revision, folder)
    click.echo(f"{repo_id} at {commit} is in {folder}.", err=True)
    click.echo(f"sana-rt export {folder} {folder}-bundle")
