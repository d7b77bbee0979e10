"""A benchmark's report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jinja2
import numpy as np
from matplotlib.image import imsave

from sana_rt import graph_names
from sana_rt.benchmarks import units
from sana_rt.benchmarks.speed.bench import Benchmark
from sana_rt.benchmarks.speed.bounds import GraphShare
from sana_rt.benchmarks.speed.kernels import KernelShare
from sana_rt.benchmarks.speed.report import Measurement, Report, SideReport
from sana_rt.benchmarks.speed.turn import BOUNDARIES, Frames
from sana_rt.files import write_bytes

_TEMPLATE: Final = Path(__file__).with_name("page.html")
_HEAVIEST: Final = 20  # kernels that are listed
_PICTURES: Final = 6  # of a clip on the contact sheet
_WIDEST: Final = 320  # pixels of a picture there
_ROOM: Final = 92.0  # percent of a plot's width up to its largest quartile and round
_PARTS: Final = {"text": "text", "denoise": "all steps", "decode": "decoding"}  # of a clip
_TITLES: Final = {
    "clip": "Prompt to last frame",
    "first_frame": "Prompt to first frame",
    "text": "Text",
    "step": "One step",
    "denoise": "All steps",
    "commit": "Commit",
    "decode": "Decoding",
    "load": "Model load",
    "compile": "Compilation",
    "warm_up": "Warm-up",
}


@dataclass(frozen=True)
class Mark:
    """A side in a plot; positions are percent of the plot's width."""

    side: str
    index: int
    measurement: Measurement
    scale: float  # percent a second

    @property
    def rounds(self) -> list[float]:
        """Where the medians of the rounds lie."""
        return [self.scale * value for value in self.measurement.rounds]

    def at(self, name: str) -> float:
        """Where a value of the spread lies; an outlier beyond the plot, at its edge."""
        value: float = getattr(self.measurement.spread, name)
        return min(100.0, self.scale * value)


@dataclass(frozen=True)
class Plot:
    """A boundary of all sides that have it."""

    title: str
    definition: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class GraphRow:
    """Graphs of one kind: the 20 blocks of a transformer are one row."""

    name: str
    share: float
    seconds_each: float
    runs: int
    bound_seconds: float | None
    reached: float | None


@dataclass(frozen=True)
class KernelRow:
    """A kernel; those of one name in the blocks of a transformer are one row."""

    graph: str
    name: str
    kind: str  # class and type, such as `gemm bfloat16`
    share: float  # of the time of all kernels in a clip
    seconds_each: float
    bound_seconds: float | None
    reached: float | None


def write(benchmark: Benchmark, path: Path) -> None:
    """Write the page."""
    write_bytes(path, render(benchmark).encode())


def render(benchmark: Benchmark) -> str:
    """The page: a summary, a plot a boundary, graphs, pictures, conditions."""
    report = benchmark.report
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"seconds": units.seconds, "times": units.times}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        heaviest=_HEAVIEST,
        longest=max(side.boundaries["clip"].spread.median for side in report.sides),
        parts=_PARTS,
        plots=[*_plots(report)],
        graphs=[(side, graph_rows(side.graphs)) for side in report.sides if side.graphs],
        kernels=[(side, kernel_rows(side)) for side in report.sides if side.kernels],
        strips=[(name, [*_pictures(frames)]) for name, frames in benchmark.frames.items()],
    )


def graph_rows(shares: tuple[GraphShare, ...]) -> list[GraphRow]:
    """The graphs, blocks together, the one with the largest share first."""
    blocks = [share for share in shares if graph_names.is_block(share.time.graph)]
    others = [share for share in shares if not graph_names.is_block(share.time.graph)]
    rows = [_row(share.time.graph, [share]) for share in others]
    if blocks:
        rows.append(_row(f"{len(blocks)} blocks", blocks))
    return sorted(rows, key=lambda row: -row.share)


def _row(name: str, shares: list[GraphShare]) -> GraphRow:
    bounds = [share.bound_seconds for share in shares if share.bound_seconds is not None]
    bound = float(np.mean(bounds)) if len(bounds) == len(shares) else None
    each = float(np.median([share.time.median_seconds for share in shares]))
    reached = all(share.reached is not None for share in shares)
    return GraphRow(
        name=name,
        share=sum(share.share for share in shares),
        seconds_each=each,
        runs=sum(share.time.runs for share in shares),
        bound_seconds=bound,
        reached=bound / each if reached and bound is not None else None,
    )


def kernel_rows(side: SideReport) -> list[KernelRow]:
    """The kernels that have a row in a layer table, the one with the largest share first."""
    runs = {share.time.graph: share.time.runs for share in side.graphs}
    blocks = sum(graph_names.is_block(each.graph) for each in side.kernels)
    found: dict[tuple[str, str], list[tuple[int, KernelShare]]] = {}
    total = 0.0
    for each in side.kernels:
        graph = f"{blocks} blocks" if graph_names.is_block(each.graph) else each.graph
        total += runs.get(each.graph, 0) * sum(one.seconds for one in each.unlisted)
        for kernel in each.kernels:
            total += runs.get(each.graph, 0) * kernel.seconds
            found.setdefault((graph, kernel.name), []).append((runs.get(each.graph, 0), kernel))
    rows = (_kernel_row(*key, kernels, total) for key, kernels in found.items())
    return sorted(rows, key=lambda row: -row.share)


def _kernel_row(
    graph: str, name: str, kernels: list[tuple[int, KernelShare]], total: float
) -> KernelRow:
    one = kernels[0][1]
    each = float(np.median([kernel.seconds for _, kernel in kernels]))
    bounds = [kernel.bound_seconds for _, kernel in kernels if kernel.bound_seconds is not None]
    bound = float(np.mean(bounds)) if len(bounds) == len(kernels) else None
    reached = all(kernel.reached is not None for _, kernel in kernels)
    return KernelRow(
        graph=graph,
        name=name,
        kind=" ".join(filter(None, (one.op_class, one.dtype))),
        share=sum(runs * kernel.seconds for runs, kernel in kernels) / total if total else 0.0,
        seconds_each=each,
        bound_seconds=bound,
        reached=bound / each if reached and bound is not None else None,
    )


def _plots(report: Report) -> Iterator[Plot]:
    for boundary, title in _TITLES.items():
        found = [
            (index, side, side.boundaries[boundary])
            for index, side in enumerate(report.sides)
            if boundary in side.boundaries
        ]
        if found:
            ends = (max(each.spread.upper_quartile, *each.rounds) for _, _, each in found)
            scale = _ROOM / max(ends)
            marks = (Mark(side.name, index, measured, scale) for index, side, measured in found)
            yield Plot(title, BOUNDARIES[boundary], tuple(marks))


def _pictures(frames: Frames) -> Iterator[str]:
    """Frames from the first to the last as data URLs, made smaller by whole factors."""
    count = min(_PICTURES, len(frames))
    shown = np.linspace(0, len(frames) - 1, count).round().astype(np.intp)
    factor = -(-frames.shape[2] // _WIDEST)
    for frame in frames[shown]:
        yield _data(_smaller(frame, factor))


def _smaller(frame: Frames, factor: int) -> Frames:
    """A frame u8 [height, width, 3] of which each pixel is the mean of ``factor`` squared."""
    height, width = (side // factor for side in frame.shape[:2])
    cut = frame[: height * factor, : width * factor].astype(np.float32)
    cells = cut.reshape(height, factor, width, factor, 3)
    return np.asarray(np.rint(cells.mean(axis=(1, 3))), np.uint8)


def _data(image: Frames) -> str:
    buffer = io.BytesIO()
    imsave(buffer, image, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
