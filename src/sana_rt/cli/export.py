"""``sana-rt export``: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sana_rt.bundle import Bundle
from sana_rt.cli import output, progress
from sana_rt.cli.command import Command, json_option
from sana_rt.cli.lora_option import Chosen, lora_option
from sana_rt.cli.stopwatch import Stopwatch
from sana_rt.model_spec import PRESETS

if TYPE_CHECKING:
    from sana_rt.export.graph_definition import DType

_DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16"}
_PATH: Final = click.Path(path_type=Path, exists=True)


@click.command(cls=Command, epilog="Example: sana-rt export out/checkpoint out/bundle --dtype bf16")
@click.argument("checkpoint", type=_PATH)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(list(_DTYPES)),
    default="fp32",
    show_default=True,
    help="Data type of weights and activations: fp32 for CPUs, bf16 for RTX cards.",
)
@click.option(
    "--variant",
    help="Name of the new variant in the bundle.  [default: the --dtype, then each --lora's file "
    "and scale]",
)
@lora_option
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
@click.option("--force", is_flag=True, help="Export again what is current.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a BUNDLE of another checkpoint or of other settings, with all its variants.",
)
@json_option
def command(
    checkpoint: Path,
    bundle: Path,
    *,
    dtype: str,
    variant: str | None,
    loras: tuple[Chosen, ...],
    preset: str | None,
    vae: Path | None,
    text_encoder: Path | None,
    tokenizer: Path | None,
    instruction: str | None,
    no_verify: bool,
    force: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert CHECKPOINT to one variant of BUNDLE: ONNX graphs, each compared with its module.

    CHECKPOINT is a folder in the diffusers layout, an original .pth, or a LongSANA .pt; the
    content decides which. A .pth holds only the transformer: give the other parts with --vae,
    --text-encoder and --tokenizer. A folder with settings that are not implemented is refused
    (docs/config-keys.md lists them all). An existing bundle keeps its other variants. An
    interrupted export leaves the bundle as it was; run it again. The last line on stdout is
    the path of the bundle.

    --lora merges LoRAs into the transformer's weights (docs/lora.md). The result is a variant of
    its own, which shares all graphs that did not change with the others of BUNDLE.

    Nothing is done if the variant is current: its files are intact, and the checkpoint, the
    settings, the data type, this program's code and the versions of onnx, onnxscript and torch
    are those that it was exported with.
    """
    from sana_rt.export import freshness, lora
    from sana_rt.export.checkpoint import Parts, open_checkpoint
    from sana_rt.export.onnx_export import ExportOptions, export_bundle

    opened = open_checkpoint(
        checkpoint,
        preset=preset,
        parts=Parts(vae, text_encoder, tokenizer),
        instruction=instruction,
    )
    if loras:
        opened = lora.merge(opened, loras)
    for note in opened.notes:
        output.note(f"Warning: {note}")
    watch = Stopwatch()
    dtype_name: DType = "float32" if dtype == "fp32" else "bfloat16"
    options = ExportOptions(dtype_name, variant, not no_verify, overwrite)
    with progress.shown("Hashing the checkpoint") as report:
        reasons = ("--force",) if force else freshness.reasons(bundle, opened, options)
        watch.lap("check")
        if reasons:
            export_bundle(opened, bundle, options, report)
            watch.lap("export")
    name = options.name(opened.source)
    if not reasons:
        output.note(f"{name} of {bundle} is current; --force exports it again.")
    elif reasons != (freshness.NEVER,):
        output.note(f"Exported {name} again: {'; '.join(reasons)}.")
    elif loras:
        output.note(f"The variant {name} has {', '.join(map(str, opened.source.loras))}.")
    if as_json:
        output.json(_facts(bundle, name, reasons) | {"seconds": watch.report()})
    else:
        click.echo(bundle)


def _facts(root: Path, name: str, reasons: tuple[str, ...]) -> dict[str, Any]:
    """What there is now, for ``--json``; ``reasons`` say why it was exported, if it was."""
    bundle = Bundle.read(root)
    variant = bundle.manifest.variant(name)
    verified = [graph.verification for graph in variant.graphs.values() if graph.verification]
    paths = {path for graph in variant.graphs.values() for path in (graph.path, *graph.weights)}
    return {
        "bundle": str(root),
        "variant": name,
        "exported": bool(reasons),
        "reasons": reasons,
        "model": bundle.manifest.model.name,
        "checkpoint": variant.source,
        "graphs": len(variant.graphs),
        "bytes": sum(bundle.manifest.file(path).bytes for path in paths),
        "verified": len(verified),
        "max_error": max((each.max_error for each in verified), default=None),
    }
