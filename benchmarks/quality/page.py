"""A quality report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave

from sana_rt import figures
from sana_rt.benchmarks.quality.compare import Comparison, Frames, Report

_TEMPLATE: Final = Path(__file__).with_name("page.html")
_SHOWN: Final = 6  # frames of a clip on a contact sheet


def render(comparison: Comparison) -> str:
    """The page: conditions, table, curves, and a contact sheet a prompt."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    report = comparison.report
    sheets = [
        {"prompt": prompt, "rows": list(frames), "png": _data(_png(sheet(frames)))}
        for prompt, frames in zip(report.prompts, comparison.frames, strict=True)
    ]
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(report=report, curves=[*_curves(report)], sheets=sheets)


def sheet(frames: Mapping[str, Frames]) -> Frames:
    """A row a variant, and in it frames from the first to the last."""
    return np.concatenate([np.concatenate([*_some(each)], axis=1) for each in frames.values()])


def _some(frames: Frames) -> Frames:
    shown = np.linspace(0, len(frames) - 1, min(_SHOWN, len(frames))).round().astype(np.intp)
    return np.asarray(frames[shown], np.uint8)


def _curves(report: Report) -> Sequence[dict[str, str]]:
    each = report.variants
    return [
        {"title": title, "svg": _data(_plot(lines, x, y), "image/svg+xml")}
        for title, x, y, lines in (
            (
                "Free-running: errors add up",
                "step",
                "latent error",
                {one.variant: one.free_error for one in each},
            ),
            (
                "Teacher-forced: the error of each step by itself",
                "step",
                "latent error",
                {one.variant: one.forced_error for one in each},
            ),
            (
                "Along the clip: does it drift away?",
                "frame",
                "PSNR (dB)",
                {one.variant: one.psnr_by_frame for one in each},
            ),
        )
    ]


def _plot(lines: Mapping[str, Sequence[float]], x: str, y: str) -> bytes:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes: Any = figure.add_subplot()
    for name, values in lines.items():
        axes.plot(range(1, len(values) + 1), values, marker=".", label=name)
    axes.set(xlabel=x, ylabel=y)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figures.encode(figure)


def _png(image: Frames) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, image, format="png")
    return buffer.getvalue()


def _data(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
