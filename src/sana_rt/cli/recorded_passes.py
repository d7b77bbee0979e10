"""The way of calibration's input from the runtime that plays prompts to what reads the passes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sana_rt.bundle import Bundle
from sana_rt.cli import prompts_file
from sana_rt.quantize.passes import RecordedPasses
from sana_rt.runtime import recording


@contextmanager
def recorded_passes(
    bundle: Bundle,
    variant: str,
    prompts: Path,
    threads: int | None,
    report: Callable[[str, int, int], None],
) -> Iterator[RecordedPasses]:
    """Play the prompts of a file and open what was recorded, in a file that is deleted again."""
    lines, sha256 = prompts_file.read(prompts)
    progress = partial(report, "playing prompts")
    with tempfile.TemporaryDirectory(prefix="sana-rt-") as folder:
        path = Path(folder) / "passes.npz"
        recording.record(path, bundle, variant, lines, sha256, threads=threads, progress=progress)
        source = bundle.manifest.variant(variant).source
        with RecordedPasses.open(path, source.sha256) as passes:
            yield passes
