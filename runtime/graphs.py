"""The graphs of a variant: opened once, run in one place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sana_rt.bundle import Bundle
from sana_rt.errors import ManifestReferenceError, NonFiniteError
from sana_rt.manifest import Graph
from sana_rt.runtime.backends.base import Backend, Binding, Buffer, Context


class Graphs:
    """Opens graphs on a backend and runs them.

    ``moment`` says in words what is being done; with ``check_finite`` every floating-point
    output is looked at after each run.
    """

    def __init__(self, bundle: Bundle, variant: str, backend: Backend) -> None:
        self.variant = variant
        self.signatures = bundle.manifest.variant(variant).graphs
        self.memory = backend.memory
        self.player: object = None  # who may run them now
        self.check_finite = False
        self.moment = ""
        self._bundle = bundle
        self._backend = backend
        self._opened: dict[str, Context] = {}

    @property
    def opened(self) -> tuple[str, ...]:
        """The names of the graphs that are loaded."""
        return tuple(self._opened)

    def signature(self, name: str) -> Graph:
        """The graph's files, inputs and outputs."""
        if name not in self.signatures:
            raise ManifestReferenceError(
                f"The variant {self.variant!r} has no graph {name!r}.",
                expected=f"it among {sorted(self.signatures)}.",
                remedy="export the checkpoint again.",
            )
        return self.signatures[name]

    def open(self, name: str, *, lasting: bool = True) -> Context:
        """Load a graph, unless it is; see :meth:`Backend.open`."""
        if name not in self._opened:
            graph = self.signature(name)
            path = self._bundle.path(graph.path)
            self._opened[name] = self._backend.open(name, graph, path, lasting=lasting)
        return self._opened[name]

    def close(self, name: str) -> None:
        """Give a graph's memory back, once no binding of it is left."""
        self._opened.pop(name, None)

    def bind(
        self, name: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]
    ) -> Binding:
        """Fix the buffers of a graph; see :meth:`Context.bind`."""
        return self.open(name).bind(inputs, outputs)

    def run(self, binding: Binding) -> None:
        """Run a graph.

        Raises:
            NonFiniteError: with ``check_finite``, an output has NaN or infinity.
        """
        binding.run()
        if self.check_finite:
            for name, buffer in binding.outputs.items():
                self._check(binding.graph, name, buffer)

    def _check(self, graph: str, output: str, buffer: Buffer) -> None:
        values = self.memory.download(buffer)
        bad = 0 if values.dtype.kind != "f" else int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            raise NonFiniteError(
                f"The graph {graph!r} wrote {bad:,} of {values.size:,} values of {output!r} as NaN "
                f"or infinity ({self.moment}).",
                remedy="`sana-rt verify` compares the graph with its module; noise and prompt "
                "embeddings of your own may be too large.",
            )
