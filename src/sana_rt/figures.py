"""Matplotlib's figures as files that are the same for the same figure."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Formats, each with what keeps the time of drawing out of it.
_NO_DATE: Final[dict[str, dict[str, None]]] = {
    "svg": {"Date": None},
    "png": {},
    "pdf": {"CreationDate": None},
}
FORMATS: Final = tuple(_NO_DATE)


def encode(figure: Figure, file_format: str = "svg") -> bytes:
    """The figure as a file in one of :data:`FORMATS`; the same figure gives the same bytes."""
    from matplotlib import rc_context  # noqa: PLC0415 - an extra; whoever has a figure has it

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "sana-rt"}):  # or the names of elements would be random
        figure.savefig(buffer, format=file_format, metadata=_NO_DATE[file_format])
    return buffer.getvalue()
