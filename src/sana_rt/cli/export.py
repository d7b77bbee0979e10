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
    help="Data type of weights and activations: fp32 for CPUs, bf16 for RTX cards.",
)
@click.option("--variant", help="Name of the new variant in the bundle.  [default: the --dtype]")
@click.option(
    "--preset",
    metavar="NAME|FILE",
    help="Model that a .pth holds, needed if the shapes of its tensors do not tell: "
    f"{', '.join(PRESETS)}, or a .json file in the form of a manifest's model.  "
    "[default: found from the tensors]",
)
@click.option(
    "--vae",
    type=_PATH,
    help="Autoencoder to export: its folder, or Wan2.1_VAE.pth.  [default: CHECKPOINT's]",
)
@click.option(
    "--text-encoder",
    type=_PATH,
    help="Text encoder to export: a Gemma-2 folder.  [default: CHECKPOINT's]",
)
@click.option(
    "--tokenizer",
    type=_PATH,
    help="Tokenizer: tokenizer.json, or the folder that holds it.  [default: CHECKPOINT's]",
)
@click.option(
    "--instruction",
    help="Text to put before every prompt: original, diffusers, none, or the path of a UTF-8 "
    "text file.  [default: CHECKPOINT's, or the one that SANA-Video was trained with]",
)
@click.option(
    "--no-verify", is_flag=True, help="Skip the comparison of every graph with its module."
)
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
    """Convert CHECKPOINT to one variant of BUNDLE: ONNX graphs, each compared with its module.

    CHECKPOINT is a folder in the diffusers layout, an original .pth, or a LongSANA .pt; the
    content decides which. A .pth holds only the transformer: give the other parts with --vae,
    --text-encoder and --tokenizer. A folder with settings that are not implemented is refused
    (docs/config-keys.md lists them all). An existing bundle keeps its other variants. An
    interrupted export leaves the bundle as it was; run it again. The last line on stdout is
    the path of the bundle.
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
