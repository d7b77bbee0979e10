"""What sees the graphs run: tensors before and after each, and what a clip is at."""

from __future__ import annotations

import numpy as np

from sana_rt.errors import NonFiniteError
from sana_rt.runtime.backends.base import Binding
from sana_rt.runtime.backends.buffers import Buffer, Memory


class Observer:
    """Sees every run of a graph. It may download any buffer of a binding, and change outputs."""

    def begin(self, moment: str) -> None:
        """What comes now, in words."""

    def before(self, binding: Binding, memory: Memory) -> None:
        """The inputs are there."""

    def after(self, binding: Binding, memory: Memory) -> None:
        """The outputs are there, and nothing has read them."""


class FiniteCheck(Observer):
    """Raises :class:`NonFiniteError` at the first output with NaN or infinity."""

    def __init__(self) -> None:
        self._moment = ""

    def begin(self, moment: str) -> None:
        """Remember it for the message."""
        self._moment = moment

    def after(self, binding: Binding, memory: Memory) -> None:
        """Look at all outputs."""
        for name, buffer in binding.outputs.items():
            self._check(binding.graph, name, buffer, memory)

    def _check(self, graph: str, output: str, buffer: Buffer, memory: Memory) -> None:
        values = memory.download(buffer)
        bad = 0 if values.dtype.kind != "f" else int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            raise NonFiniteError(
                f"The graph {graph!r} wrote {bad:,} of {values.size:,} values of {output!r} as NaN "
                f"or infinity ({self._moment}).",
                remedy="`sana-rt verify` compares the graph with its module; noise and prompt "
                "embeddings of your own may be too large.",
            )
