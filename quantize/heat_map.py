"""A sensitivity table as a picture: layers by blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sana_rt import figures, graph_names
from sana_rt.quantize.sensitivity import Sensitivity


def draw(found: Sensitivity) -> bytes:
    """SVG: the velocity's relative error (colour) for each layer (row) and block (column)."""
    errors = found.velocity_errors()
    blocks = list(dict.fromkeys(entry.block for entry in found.entries))
    groups = list(dict.fromkeys(entry.group for entry in found.entries))
    values = np.array([[errors[f"{block}/{group}"] for block in blocks] for group in groups])
    figure = Figure(figsize=(2.5 + 0.45 * len(blocks), 1.5 + 0.35 * len(groups)))
    figure.set_layout_engine("constrained")
    axes: Any = figure.add_subplot()
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(blocks)), [graph_names.block_index(block) for block in blocks])
    axes.set_yticks(range(len(groups)), groups)
    axes.set_xlabel("block")
    axes.set_title(f"Error of the velocity, one layer in {found.format}", fontsize="medium")
    figure.colorbar(image)
    return figures.encode(figure)
