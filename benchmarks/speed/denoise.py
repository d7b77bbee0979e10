"""Seconds a denoising step on a CPU: ONNX Runtime through our runtime, beside diffusers eager.

Run ``python -m sana_rt.benchmarks.speed.denoise``. Both sides play the same clip: the same seeded
weights, noise and prompt embeddings, float32, guidance, DPM-Solver++, as many threads; that they
make the same latents is checked first. A step is everything between the ends of two steps.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np

from sana_rt import geometry, machine
from sana_rt.benchmarks.speed import harness
from sana_rt.benchmarks.speed.denoise_diffusers import Diffusers
from sana_rt.benchmarks.speed.denoise_ours import Ours
from sana_rt.benchmarks.speed.harness import Comparison, Conditions
from sana_rt.errors import VerificationError
from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.export.onnx_export import ExportOptions, export_bundle
from sana_rt.export.seeded import SMALL, write_checkpoint
from sana_rt.model_spec import PRESETS, Frozen, ModelSpec

RESULTS: Final = Path(__file__).parents[1] / "results" / "denoise-cpu.json"
#: A few steps are not the same to the last bit: guidance and rounding, see the tests' 2e-5.
LATENTS_TOLERANCE: Final = 1e-3

_2B = PRESETS["sana-video-2b-480p"]
#: The real width, with two of its 20 blocks and a 68th of a 480p clip's 32,760 tokens.
WIDE: Final = msgspec.structs.replace(
    _2B,
    name="sana-video-2b-two-blocks",
    transformer=msgspec.structs.replace(_2B.transformer, num_layers=2),
    vae=SMALL.vae,
    text=msgspec.structs.replace(SMALL.text, max_tokens=_2B.text.max_tokens),
    sampling=msgspec.structs.replace(SMALL.sampling, height=128, width=192),
)
CASES: Final = {"small": (SMALL, 30), "wide": (WIDE, 8)}  # with rounds
STEPS: Final = 5

_PACKAGES: Final = ("sana-rt", "onnxruntime", "diffusers", "torch", "numpy")


class Case(Frozen, frozen=True):
    """One size: what was played, how long a step took, how much memory each side had."""

    width: int
    blocks: int
    tokens: int
    batch: int
    text_tokens: int
    seconds_a_step: Comparison
    largest_latent_difference: float
    ours_peak_bytes: int
    reference_peak_bytes: int


class DenoiseReport(Frozen, frozen=True):
    """What was measured, and under which conditions."""

    conditions: Conditions
    cases: dict[str, Case]


def measure(spec: ModelSpec, rounds: int, threads: int, folder: Path) -> Case:
    """Play ``spec`` on both sides; checkpoint and bundle go to ``folder``."""
    checkpoint = write_checkpoint(folder / "checkpoint", spec=spec)
    denoiser = replace(open_checkpoint(checkpoint), vae=None, text_encoder=None)
    bundle = export_bundle(denoiser, folder / "bundle", ExportOptions(verify=False)).root
    ours = Ours(str(bundle), STEPS, threads)
    reference = Diffusers(str(checkpoint), STEPS, threads)
    compared = harness.interleave(ours.turn, reference.turn, rounds)
    sampling, transformer = spec.sampling, spec.transformer
    frames = spec.latent_frames(sampling.num_frames)
    module, shared = "sana_rt.benchmarks.speed.denoise", {"steps": STEPS, "threads": threads}
    return Case(
        width=transformer.width,
        blocks=transformer.num_layers,
        tokens=geometry.tokens(spec, frames, sampling.height, sampling.width),
        batch=2,
        text_tokens=spec.text.max_tokens,
        seconds_a_step=compared,
        largest_latent_difference=_difference(ours.latents, reference.latents),
        ours_peak_bytes=harness.peak_bytes(
            f"{module}_ours:play", {"bundle": str(bundle), **shared}, threads
        ),
        reference_peak_bytes=harness.peak_bytes(
            f"{module}_diffusers:play", {"checkpoint": str(checkpoint), **shared}, threads
        ),
    )


def _difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of the latents over the largest latent."""
    difference = float(np.abs(ours - reference).max() / np.abs(reference).max())
    if not difference <= LATENTS_TOLERANCE:
        raise VerificationError(
            f"The two sides' latents differ by {difference:.1e} of the largest.",
            expected=f"at most {LATENTS_TOLERANCE:.1e}: the comparison would be of two models.",
        )
    return difference


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option(
    "--case", "names", type=click.Choice(list(CASES)), multiple=True, help="Default: all."
)
@click.option("--threads", type=click.IntRange(min=1), default=machine.usable_cpus())
def main(output: Path, names: tuple[str, ...], threads: int) -> None:
    """Measure, and write the figures with their conditions."""
    conditions = harness.conditions(_PACKAGES, threads)
    cases = {}
    for name in names or CASES:
        spec, rounds = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            cases[name] = measure(spec, rounds, threads, Path(folder))
        ratio = cases[name].seconds_a_step.ratio
        sys.stderr.write(
            f"{name}: diffusers takes {ratio.median:.2f} times as long "
            f"({ratio.lower_quartile:.2f} to {ratio.upper_quartile:.2f})\n"
        )
    harness.write(DenoiseReport(conditions, cases), output)
    click.echo(output)


if __name__ == "__main__":
    main()
