"""The native library beside Python: the time to the first frame, the memory, what a step costs.

Run ``python -m sana_rt.benchmarks.speed.native BUNDLE`` after ``make native``. In every round each
side plays one clip in a process of its own; who begins changes from round to round.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import click
import msgspec

from sana_rt.benchmarks.conditions import Conditions, conditions
from sana_rt.benchmarks.speed import report as reports
from sana_rt.benchmarks.spread import Spread, paired
from sana_rt.bundle import Bundle
from sana_rt.errors import BenchmarkError, VerificationError
from sana_rt.model_spec import Frozen

RESULTS: Final = Path(__file__).parents[1] / "results" / "native.json"
BUILD: Final = Path("build/native")
PROMPT: Final = "a red circle moving slowly to the right on a grey background"
_PACKAGES: Final = ("sana-rt", "onnxruntime", "numpy")
# The time before anything is imported, as a program in C++ takes it at the start of main.
_MAIN: Final = (
    "import time; begin = time.monotonic(); "
    "from sana_rt.benchmarks.speed.native_turn import play; play(begin)"
)


class Step(Frozen, frozen=True):
    """A denoising step, and how much of it ONNX Runtime's Run had."""

    seconds: float
    run_seconds: float


class Turn(Frozen, frozen=True):
    """One clip; times are those of the machine's monotonic clock."""

    main: float
    first_frame: float
    last_frame: float
    peak_resident_bytes: int
    frames: str
    steps: tuple[Step, ...]

    def step_seconds(self) -> float:
        """The median step."""
        return statistics.median(step.seconds for step in self.steps)

    def share_outside(self) -> float:
        """How much of a step is not ONNX Runtime's: the median of all steps."""
        return statistics.median(1 - step.run_seconds / step.seconds for step in self.steps)


class Side(Frozen, frozen=True):
    """All rounds of one side; ``launch`` is the start of the process, ``main`` that of its main."""

    launch_to_first_frame_seconds: Spread
    main_to_first_frame_seconds: Spread
    peak_resident_bytes: Spread
    step_seconds: Spread
    step_share_outside_run: Spread


class NativeReport(Frozen, frozen=True):
    """What was measured; ratios are native over Python, round by round."""

    conditions: Conditions
    bundle: str
    prompt: str
    library_bytes: int
    onnxruntime_bytes: int
    native: Side
    python: Side
    ratios: dict[str, Spread]


def turn(command: list[str], bundle: Path, threads: int) -> tuple[float, Turn]:
    """A clip in a process of its own: when it was started, and what it says."""
    started = time.monotonic()
    ran = subprocess.run(  # noqa: S603 - programs of ours
        [*command, str(bundle), PROMPT, str(threads)], capture_output=True, check=False
    )
    if ran.returncode != 0:
        raise BenchmarkError(
            f"{command[0]} ended with exit code {ran.returncode}: "
            f"{ran.stderr[-400:].decode(errors='replace')}",
            remedy="build it (make native), and play the bundle once.",
        )
    return started, msgspec.json.decode(ran.stdout, type=Turn)


def _side(turns: list[tuple[float, Turn]]) -> dict[str, list[float]]:
    return {
        "launch_to_first_frame_seconds": [one.first_frame - start for start, one in turns],
        "main_to_first_frame_seconds": [one.first_frame - one.main for _, one in turns],
        "peak_resident_bytes": [float(one.peak_resident_bytes) for _, one in turns],
        "step_seconds": [one.step_seconds() for _, one in turns],
        "step_share_outside_run": [one.share_outside() for _, one in turns],
    }


def _stripped_bytes(library: Path) -> int:
    """Its size without debug information, as ``cmake --install --strip`` installs it."""
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(["strip", "-o", file.name, str(library)], check=True)  # noqa: S603, S607
        return Path(file.name).stat().st_size


def measure(bundle: Path, build: Path, threads: int, rounds: int) -> NativeReport:
    """Both sides in turns.

    Raises:
        VerificationError: the sides made different frames.
        BenchmarkError: one of them failed.
    """
    before = conditions(_PACKAGES, threads)
    commands = {
        "native": [str(build / "tests/bench_play")],
        "python": [sys.executable, "-c", _MAIN],
    }
    turns: dict[str, list[tuple[float, Turn]]] = {name: [] for name in commands}
    for index in range(rounds + 1):
        for name in sorted(commands, reverse=index % 2 == 1):
            made = turn(commands[name], bundle, threads)
            if index > 0:  # the first reads files into the page cache
                turns[name].append(made)
        sys.stderr.write(f"round {index} of {rounds}\n")
    if len({one.frames for made in turns.values() for _, one in made}) != 1:
        raise VerificationError("The frames differ.", expected="the same from both sides.")
    native, python = (_side(turns[name]) for name in ("native", "python"))
    return NativeReport(
        conditions=before,
        bundle=Bundle.open(bundle).manifest.model.name,
        prompt=PROMPT,
        library_bytes=_stripped_bytes(build / "libsana_rt.so"),
        onnxruntime_bytes=(build / "onnxruntime/libonnxruntime.so.1").stat().st_size,
        native=Side(**{name: Spread.of(values) for name, values in native.items()}),
        python=Side(**{name: Spread.of(values) for name, values in python.items()}),
        ratios={name: paired(values, python[name]) for name, values in native.items()},
    )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--build", type=click.Path(path_type=Path), default=BUILD, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(bundle: Path, build: Path, threads: int, rounds: int, output: Path) -> None:
    """Measure, and write the figures with their conditions."""
    report = measure(bundle, build, threads, rounds)
    reports.write(report, output)
    click.echo(output)


if __name__ == "__main__":
    main()
