"""Does a stream get larger or slower as it goes on? A long one beside a short one, measured.

Run ``python -m sana_rt.benchmarks.speed.streaming``. Each stream plays the seeded small
block-causal model on the CPU, in a process of its own, and is written as a growing video. Memory
is what the kernel says of that process (Linux only).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sana_rt import figures, geometry, machine
from sana_rt.benchmarks import processes
from sana_rt.benchmarks.conditions import Conditions, conditions
from sana_rt.benchmarks.processes import Call
from sana_rt.benchmarks.speed import report as reports
from sana_rt.bundle import Bundle
from sana_rt.errors import UsageError
from sana_rt.files import write_bytes
from sana_rt.model_spec import Frozen, ModelSpec, StreamingSpec
from sana_rt.runtime.carried_state import NAMES
from sana_rt.runtime.session import Session
from sana_rt.runtime.video import live_video

RESULTS: Final = Path(__file__).parents[1] / "results" / "streaming.json"
PROMPT: Final = "a red circle moving to the right"
_Z_95: Final = 1.959964  # two-sided 95 % of the normal distribution
_PACKAGES: Final = ("sana-rt", "onnxruntime", "numpy", "av")


class Run(Frozen, frozen=True):
    """One stream. Lists have one entry a chunk; seconds are those since the chunk before."""

    video_seconds: float
    frames: int
    chunk_latent_frames: tuple[int, ...]
    predicted_state_bytes: int
    state_bytes: int
    allocations_after_first_chunk: int
    peak_resident_bytes: int
    resident_bytes: tuple[int, ...]
    wall_seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]


class Slope(Frozen, frozen=True):
    """Change of a chunk's seconds from one chunk to the next, with its 95 % interval.

    Least squares. Chunks that follow each other are alike slow, because the machine is; the
    interval is widened for the residuals' lag-1 autocorrelation r, by the square root of
    (1 + r) / (1 - r) (the effective sample size of Santer et al. 2000, JGR 105).
    """

    mean: float
    slope: float
    low: float
    high: float


class StreamingReport(Frozen, frozen=True):
    """What was measured, and under which conditions."""

    conditions: Conditions
    model: str
    height: int
    width: int
    runs: tuple[Run, ...]
    peak_growth: float  # of the longest over the shortest, minus 1
    cpu_slope: Slope  # of the longest
    wall_slope: Slope


def export(folder: Path) -> Path:
    """A bundle of the seeded small model, block-causal and sampled as LongSANA is."""
    # Imported here, so that the processes that are measured do without PyTorch, as players do.
    from sana_rt.export.checkpoint import open_checkpoint  # noqa: PLC0415
    from sana_rt.export.onnx_export import export_bundle  # noqa: PLC0415
    from sana_rt.export.seeded import SMALL, write_checkpoint  # noqa: PLC0415

    replace = msgspec.structs.replace
    sampling = replace(SMALL.sampling, solver="renoise", num_inference_steps=4, guidance_scale=1.0)
    model = replace(
        SMALL,
        name="sana-video-small-causal",
        transformer=replace(SMALL.transformer, causal=True, attention_eps=1e-8),
        sampling=sampling,
        streaming=StreamingSpec(),
    )
    checkpoint = write_checkpoint(folder / "checkpoint", spec=model)
    return export_bundle(open_checkpoint(checkpoint), folder / "bundle").root


def measure(bundle: str, seconds: float, threads: int) -> Run:
    """Play one stream in this process, which should have done nothing else."""
    session = Session.open(Path(bundle), threads=threads)
    num_frames = geometry.num_frames(seconds, session.model.sampling.fps, session.model)
    request = session.request(prompt=PROMPT, num_frames=num_frames)
    stream = session.stream(request)
    allocations: list[int] = []
    resident: list[int] = []
    marks = [(time.perf_counter(), time.process_time())]
    lengths: list[int] = []
    made = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        live_video(
            Path(folder) / "stream.mp4",
            height=request.height,
            width=request.width,
            fps=request.fps,
        ) as write,
    ):
        for chunk in stream.chunks:
            for _ in chunk:
                frames = next(stream)
                write(frames)
                made += len(frames)
            lengths.append(len(chunk))
            marks.append((time.perf_counter(), time.process_time()))
            resident.append(processes.known(machine.resident_bytes()))
            allocations.append(session.graphs.memory.allocations)
    peak = processes.known(machine.peak_resident_bytes())  # before the copy of the state
    state = stream.state()
    wall, cpu = np.diff(np.array(marks), axis=0).T.tolist()
    return Run(
        video_seconds=made / request.fps,
        frames=made,
        chunk_latent_frames=tuple(lengths),
        predicted_state_bytes=_predicted_state_bytes(session),
        state_bytes=sum(state.tensors[name].nbytes for name in NAMES),
        allocations_after_first_chunk=allocations[-1] - allocations[0],
        peak_resident_bytes=peak,
        resident_bytes=tuple(resident),
        wall_seconds=tuple(wall),
        cpu_seconds=tuple(cpu),
    )


def slope(seconds: Sequence[float]) -> Slope:
    """Fit the chunks that are alike: the first is longer, and others had loading to do."""
    y = np.array(seconds[1:])
    if len(y) < 3:
        raise UsageError(
            f"The longest stream has {len(seconds)} chunks.", expected="4 at least, to fit a line."
        )
    x = np.arange(len(y)) - (len(y) - 1) / 2
    gradient = float(x @ y / (x @ x))
    residuals = y - y.mean() - gradient * x
    error = math.sqrt(float(residuals @ residuals) / (len(y) - 2) / float(x @ x))
    r = max(0.0, float(residuals[1:] @ residuals[:-1] / (residuals @ residuals)))
    half = _Z_95 * error * math.sqrt((1 + r) / (1 - r))
    return Slope(float(y.mean()), gradient, gradient - half, gradient + half)


def report(runs: Sequence[Run], model: ModelSpec, threads: int) -> StreamingReport:
    """Compare the longest stream with the shortest."""
    short, long = (pick(runs, key=lambda run: run.frames) for pick in (min, max))
    growth = long.peak_resident_bytes / short.peak_resident_bytes - 1
    cpu, wall = slope(long.cpu_seconds), slope(long.wall_seconds)
    return StreamingReport(
        conditions=conditions(_PACKAGES, threads),
        model=model.name,
        height=model.sampling.height,
        width=model.sampling.width,
        runs=tuple(runs),
        peak_growth=growth,
        cpu_slope=cpu,
        wall_slope=wall,
    )


def draw(result: StreamingReport, path: Path) -> None:
    """Draw memory and pace over the video as SVG."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    memory, pace = figure.subplots(1, 2)
    for run in result.runs:
        label = f"a stream of {run.video_seconds:.0f} s"
        memory.plot(_seconds(run), np.array(run.resident_bytes) / 2**20, ".-", label=label)
    memory.set_ylabel("resident memory (MiB)")
    longest = max(result.runs, key=lambda run: run.frames)
    for name, values in (("wall", longest.wall_seconds), ("CPU", longest.cpu_seconds)):
        pace.plot(_seconds(longest)[1:], values[1:], ".-", label=f"{name} time")
    pace.set_ylabel("seconds a chunk")
    for axis in (memory, pace):
        _finish(axis)
    write_bytes(path, figures.encode(figure))


def _finish(axis: Axes) -> None:
    axis.set_xlabel("seconds of video")
    axis.set_ylim(0, 1.2 * axis.get_ylim()[1])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _seconds(run: Run) -> list[float]:
    """Where chunks end in the video."""
    ends = np.cumsum(run.chunk_latent_frames) / sum(run.chunk_latent_frames)
    return [float(end) * run.video_seconds for end in ends]


def _predicted_state_bytes(session: Session) -> int:
    """S and the key sums of every block in float32, and a frame of z (docs/architecture.md)."""
    spec, sampling = session.model.transformer, session.model.sampling
    tokens = geometry.tokens(session.model, 1, sampling.height, sampling.width)
    heads, d = spec.num_heads, spec.head_dim
    return 4 * spec.num_layers * (heads * d * d + heads * d + tokens * spec.width)


@click.command()
@click.option("--seconds", type=float, multiple=True, default=(20, 300), show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--bundle", type=click.Path(path_type=Path), help="Instead of one made here.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=RESULTS,
    show_default=True,
    help="The plot is put beside it, as SVG.",
)
def main(seconds: tuple[float, ...], threads: int, bundle: Path | None, output: Path) -> None:
    """Measure streams of different lengths; write figures and a plot."""
    with tempfile.TemporaryDirectory() as folder:
        if bundle is None:
            bundle = export(Path(folder))
        runs = []
        for length in seconds:
            arguments = {"bundle": str(bundle), "seconds": length, "threads": threads}
            outcome = Call("sana_rt.benchmarks.speed.streaming:measure", arguments, threads).run()
            runs.append(msgspec.convert(outcome.value, Run))
        result = report(runs, Bundle.read(bundle).manifest.model, threads)
    reports.write(result, output)
    draw(result, output.with_suffix(".svg"))
    click.echo(
        f"peak memory {result.peak_growth:+.2%} from {min(seconds):g} s to {max(seconds):g} s; "
        f"CPU time a chunk {result.cpu_slope.mean:.3g} s, changing by "
        f"{result.cpu_slope.slope:+.2g} s a chunk ({result.cpu_slope.low:+.2g} to "
        f"{result.cpu_slope.high:+.2g}, 95 %)"
    )


if __name__ == "__main__":
    main()
