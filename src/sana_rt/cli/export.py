"""``sana-rt export``: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from sana_rt.cli import progress
from sana_rt.cli.printable import printable
from sana_rt.model_spec import PRESETS

_DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16"}
_PATH: Final = click.Path(path_type=Path, exists=True)


@click.command(epilog="Example: sana-rt export out/checkpoint out/bundle --dtype bf16")
@click.argument("checkpoint", type=_PATH)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(list(_DTYPES)),
    default="fp32",
    show_default=True,
    help="Of weights and activations: fp32 for CPUs, bf16 for RTX cards.",
)
@click.option("--variant", help="Its name in the bundle.  [default: the dtype]")
@click.option(
    "--preset",
    metavar="NAME|FILE",
    help=f"What a bare .pth is: {', '.join(PRESETS)}, or a .json file like a manifest's model.",
)
@click.option("--vae", type=_PATH, help="An autoencoder's folder, or Wan2.1_VAE.pth.")
@click.option("--text-encoder", type=_PATH, help="A Gemma-2 folder.")
@click.option("--tokenizer", type=_PATH, help="tokenizer.json, or its folder.")
@click.option(
    "--instruction", help="Put before prompts: original, diffusers, none, or a text file."
)
@click.option("--no-verify", is_flag=True, help="Do not compare graphs with their modules.")
def command(
    checkpoint: Path,
    bundle: Path,
    *,
    dtype: str,
    variant: str | None,
    preset: str | None,
    vae: Path | None,
    text_encoder: Path | None,
    tokenizer: Path | None,
    instruction: str | None,
    no_verify: bool,
) -> None:
    """Turn CHECKPOINT into one variant of BUNDLE: ONNX graphs, each compared with its module.

    CHECKPOINT is a folder in the diffusers layout, an original .pth, or a LongSANA .pt; which
    one is told by content. A .pth has the transformer only: name the other parts. A bundle
    that exists keeps its other variants. An export that was interrupted leaves the bundle as
    it was; run it again. The last line on stdout is the path of the bundle.
    """
    from sana_rt.export.checkpoint import Parts, open_checkpoint
    from sana_rt.export.onnx_export import ExportOptions, export_bundle

    opened = open_checkpoint(
        checkpoint,
        preset=preset,
        parts=Parts(vae, text_encoder, tokenizer),
        instruction=instruction,
    )
    for note in opened.notes:
        click.echo(printable(f"Warning: {note}"), err=True)
    options = ExportOptions("float32" if dtype == "fp32" else "bfloat16", variant, not no_verify)
    with progress.shown("Hashing the checkpoint") as report:
        export_bundle(opened, bundle, options, report)
    click.echo(bundle)
