"""What ``--max-memory`` saves: the memory of a process that plays a clip, with and without it.

Run ``python -m sana_rt.benchmarks.speed.max_memory``. A seeded model of moderate width is exported
to a temporary folder and played on the CPU, each time in a process of its own.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from sana_rt.benchmarks import processes
from sana_rt.benchmarks.conditions import Conditions, conditions
from sana_rt.benchmarks.processes import Call
from sana_rt.benchmarks.speed import report as reports
from sana_rt.errors import VerificationError
from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.export.onnx_export import ExportOptions, export_bundle
from sana_rt.export.seeded import SMALL, write_checkpoint
from sana_rt.model_spec import Frozen, ModelSpec
from sana_rt.runtime.session import Session

RESULTS: Final = Path(__file__).parents[1] / "results" / "max-memory.json"
CLIP: Final[dict[str, Any]] = {
    "prompt": "a red circle",
    "height": 192,
    "width": 192,
    "num_frames": 17,
    "num_inference_steps": 2,
}
_PACKAGES: Final = ("sana-rt", "onnxruntime", "numpy")


class Played(Frozen, frozen=True):
    """One clip; ``frames`` is the SHA-256 of all its pictures."""

    max_memory: int | None
    loaded_at_the_same_time: tuple[tuple[str, ...], ...]
    planned_bytes: int
    peak_resident_bytes: int
    seconds: float
    frames: str


class MaxMemoryReport(Frozen, frozen=True):
    """What was measured, and under which conditions."""

    conditions: Conditions
    model: str
    clips: tuple[Played, ...]


def model() -> ModelSpec:
    """Half a gigabyte of text encoder and of transformer, and a decoder with large caches."""
    edit = msgspec.structs.replace
    return edit(
        SMALL,
        name="seeded, width 1120",
        transformer=edit(
            SMALL.transformer, num_layers=6, num_heads=10, head_dim=112, num_cross_heads=10,
            cross_head_dim=112, caption_channels=1024, ffn_dim=3360,
        ),
        text=edit(
            SMALL.text, hidden_size=1024, intermediate_size=4096, num_layers=10, num_heads=8,
            num_kv_heads=4, head_dim=128, query_pre_attn_scalar=128.0,
        ),
        vae=edit(SMALL.vae, base_dim=48, num_res_blocks=2),
    )  # fmt: skip


def play(bundle: str, max_memory: int | None, output: str) -> None:
    """Play the clip in this process, and write what it was to a file."""
    digest = hashlib.sha256()
    begin = time.perf_counter()
    with Session.open(Path(bundle), threads=1, max_memory=max_memory) as session:
        request = session.request(**CLIP)
        plan = session.plan(request)
        for frames in session.generate(request):
            digest.update(frames.tobytes())
    groups = tuple(tuple(phase.name for phase in group) for group in plan.groups)
    seconds = round(time.perf_counter() - begin, 1)
    played = Played(max_memory, groups, plan.total_bytes, 0, seconds, digest.hexdigest())
    Path(output).write_bytes(msgspec.json.encode(played))


def measure(bundle: Path, max_memory: int | None, folder: Path) -> Played:
    """Play the clip in a process of its own."""
    output = folder / "played.json"
    arguments: dict[str, Any] = {
        "bundle": str(bundle),
        "max_memory": max_memory,
        "output": str(output),
    }
    call = Call("sana_rt.benchmarks.speed.max_memory:play", arguments, threads=1)
    peak = processes.known(call.run().peak_bytes)
    played = msgspec.json.decode(output.read_bytes(), type=Played)
    return msgspec.structs.replace(played, peak_resident_bytes=peak)


def smallest(bundle: Path) -> int:
    """The least memory in which the clip can be made."""
    with Session.open(bundle, threads=1, max_memory=1) as session:
        return session.plan(session.request(**CLIP)).total_bytes


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(output: Path) -> None:
    """Measure, and write the figures with their conditions."""
    before = conditions(_PACKAGES, threads=1)
    spec = model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = open_checkpoint(write_checkpoint(folder / "checkpoint", spec=spec))
        export_bundle(checkpoint, folder / "bundle", ExportOptions(verify=False))
        clips = []
        for limit in (None, smallest(folder / "bundle")):
            clips.append(measure(folder / "bundle", limit, folder))
            sys.stderr.write(f"{limit}: {clips[-1].peak_resident_bytes / 2**20:,.0f} MiB\n")
    if len({clip.frames for clip in clips}) != 1:
        raise VerificationError("The clips differ.", expected="the same frames in any memory.")
    reports.write(MaxMemoryReport(before, spec.name, tuple(clips)), output)
    click.echo(output)


if __name__ == "__main__":
    main()
