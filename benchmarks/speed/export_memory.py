"""The most memory that exporting a model of full size takes, checks included.

Run ``python -m sana_rt.benchmarks.speed.export_memory``. The checkpoint has the real sizes and
random weights, is written in shards to a temporary folder (8 GB, and as much again for the
bundle), and is removed afterwards.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
import msgspec

from sana_rt.benchmarks import processes
from sana_rt.benchmarks.conditions import Conditions, conditions
from sana_rt.benchmarks.processes import Call
from sana_rt.benchmarks.speed import report as reports
from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.export.graph_definition import DType
from sana_rt.export.onnx_export import ExportOptions, export_bundle
from sana_rt.export.seeded import SMALL, write_checkpoint
from sana_rt.model_spec import PRESETS, Frozen, ModelSpec

RESULTS: Final = Path(__file__).parents[1] / "results" / "export-memory.json"
PARTS: Final = ("transformer", "text_encoder")

_PACKAGES: Final = ("sana-rt", "torch", "onnx", "onnxruntime", "safetensors")


class Export(Frozen, frozen=True):
    """One export of one part, every graph compared with its module."""

    part: str
    dtype: str
    checkpoint_bytes: int
    bundle_bytes: int
    peak_bytes: int
    seconds: float


class ExportReport(Frozen, frozen=True):
    """What was measured, and under which conditions."""

    conditions: Conditions
    exports: tuple[Export, ...]


def full_size(part: str) -> ModelSpec:
    """The 2B 480p model, with the parts that are not measured made small."""
    spec = PRESETS["sana-video-2b-480p"]
    small = {"vae": SMALL.vae}
    if part == "transformer":
        return msgspec.structs.replace(spec, text=SMALL.text, **small)
    one_block = msgspec.structs.replace(spec.transformer, num_layers=1)
    return msgspec.structs.replace(spec, transformer=one_block, **small)


def run(checkpoint: str, bundle: str, part: str, dtype: DType) -> None:
    """Export one part in this process."""
    opened = replace(open_checkpoint(Path(checkpoint)), vae=None)
    if part == "transformer":
        opened = replace(opened, text_encoder=None)
    export_bundle(opened, Path(bundle), ExportOptions(dtype))


def measure(part: str, dtype: DType, folder: Path) -> Export:
    """Make the checkpoint, then export it in a process of its own."""
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    write_checkpoint(checkpoint, spec=full_size(part))
    arguments = {"checkpoint": str(checkpoint), "bundle": str(bundle), "part": part, "dtype": dtype}
    begin = time.perf_counter()
    call = Call("sana_rt.benchmarks.speed.export_memory:run", arguments, threads=2)
    peak = processes.known(call.run().peak_bytes)
    return Export(
        part=part,
        dtype=dtype,
        checkpoint_bytes=_size(checkpoint / part),
        bundle_bytes=_size(bundle),
        peak_bytes=peak,
        seconds=round(time.perf_counter() - begin, 1),
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Default: both.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
def main(output: Path, parts: tuple[str, ...], dtype: DType) -> None:
    """Measure, and write the figures with their conditions."""
    before = conditions(_PACKAGES, threads=2)
    exports = []
    for part in parts or PARTS:
        folder = Path(tempfile.mkdtemp())
        try:
            exports.append(measure(part, dtype, folder))
        finally:
            shutil.rmtree(folder)
        sys.stderr.write(f"{part}: {exports[-1].peak_bytes / 2**30:.2f} GiB\n")
    reports.write(ExportReport(before, tuple(exports)), output)
    click.echo(output)


if __name__ == "__main__":
    main()
