"""Pictures of what a block does: where its bytes and its FLOPs go, variant beside variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sana_rt import figures
from sana_rt.engines.roofline import Sums

#: Unit, divisor and field of each panel.
_PANELS: Final = (
    ("bytes through memory (GB)", 1e9, "bytes"),
    ("FLOP (10¹²)", 1e12, "flops"),
    ("bound on time (ms), no measurement", 1e-3, "seconds"),
)


def draw(blocks: Mapping[str, Sequence[Sums]], file_format: str) -> bytes:
    """The sums of a block by class of operation; ``blocks`` is by the name of a variant."""
    names = list(dict.fromkeys(group.name for groups in blocks.values() for group in groups))
    figure = Figure(figsize=(11, 1.5 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(_PANELS), sharey=True)
    for axis, (title, unit, field) in zip(axes, _PANELS, strict=True):
        _panel(axis, names, blocks, field, unit)
        axis.set_title(title, fontsize=10)
    axes[0].invert_yaxis()  # of all, because they share it
    axes[0].legend(fontsize=8)
    return figures.encode(figure, file_format)


def _panel(
    axis: Axes,
    names: Sequence[str],
    blocks: Mapping[str, Sequence[Sums]],
    field: str,
    unit: float,
) -> None:
    """Horizontal bars, one of each variant beside the other."""
    height = 0.8 / len(blocks)
    for index, (variant, groups) in enumerate(blocks.items()):
        values = {group.name: getattr(group, field) / unit for group in groups}
        places = [row + (index - (len(blocks) - 1) / 2) * height for row in range(len(names))]
        axis.barh(places, [values.get(name, 0.0) for name in names], height, label=variant)
    axis.set_yticks(range(len(names)), names)
    axis.grid(axis="x", alpha=0.3)
