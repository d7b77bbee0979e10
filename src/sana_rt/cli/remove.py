"""``sana-rt remove``: variants and plans out of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from sana_rt import bundle_writer
from sana_rt.bundle import Bundle
from sana_rt.cli import output
from sana_rt.cli.command import Command, json_option
from sana_rt.errors import UsageError


@click.command(cls=Command, epilog="Example: sana-rt remove out/bundle --variant nvfp4-max")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", help="Variant to remove; with --plans, the one whose plans to remove.")
@click.option("--plans", is_flag=True, help="Remove plans (TensorRT engines) only.")
@click.option("--target", help="Cards whose plans to remove, such as sm120.  [default: all]")
@json_option
def command(
    bundle: Path, *, variant: str | None, plans: bool, target: str | None, as_json: bool
) -> None:
    """Remove a variant, or plans, from BUNDLE, and the files that nothing else in it uses.

    A variant that was made from a removed one stays whole. If it is interrupted, BUNDLE is as it
    was before or as it shall be.
    """
    if target is not None and not plans:
        raise UsageError("--target is given without --plans.", expected="both, or neither.")
    before = Bundle.read(bundle).manifest
    if plans:
        after = bundle_writer.remove_plans(bundle, variant, target).manifest
    elif variant is not None:
        after = bundle_writer.remove_variant(bundle, variant).manifest
    else:
        raise UsageError("Nothing would be removed.", expected="--variant, --plans, or both.")
    gone = sorted({file.path for file in before.files} - {file.path for file in after.files})
    freed = sum(before.file(path).bytes for path in gone)
    if as_json:
        output.json({"bundle": str(bundle), "removed": gone, "bytes": freed})
    else:
        click.echo(f"Removed {len(gone)} files, {output.size(freed)}.")
