"""What the blocks of a transformer are given while prompts are played."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sana_rt import geometry, graph_names
from sana_rt.bundle import Bundle
from sana_rt.quantize.calibrate import Array, Pass
from sana_rt.runtime import backends
from sana_rt.runtime import request as requests
from sana_rt.runtime.backends.base import Backend, Binding, Buffer
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.session import Session

#: Steps of a played prompt; at each of them the blocks see tokens of another noise level.
STEPS: Final = 4
#: Latent frames and, in units of the smallest, the height and width of a played clip. Small, so
#: that a CPU can play it: magnitudes are of tokens, of which even such a clip has hundreds.
FRAMES: Final = 5
SIDE: Final = 8

_FIRST: Final = graph_names.block(0)
_TEXT: Final = ("text_k", "text_v")


def record(
    bundle: Bundle,
    variant: str,
    prompts: tuple[str, ...],
    threads: int | None,
    progress: Callable[[int, int], None],
) -> list[Pass]:
    """Play short clips and keep what the blocks are given in every pass."""
    backend, name = backends.select("onnxruntime", bundle.manifest.variants, variant, threads)
    graphs = RecordingGraphs(bundle, name, backend)
    session = Session(bundle, graphs, backend.name, keep_text_encoder=False)
    model = bundle.manifest.model
    height, width = (SIDE * multiple for multiple in model.size_multiples)
    for index, prompt in enumerate(prompts):
        progress(index, len(prompts))
        given: dict[str, Any] = {
            "prompt": prompt,
            "seed": index,
            "height": height,
            "width": width,
            "num_frames": geometry.video_frames(model, FRAMES),
        }
        if model.streaming is None:
            given["num_inference_steps"] = STEPS
        request = requests.for_model(model, given)
        for _ in session.latents(request):
            pass
    return graphs.passes


class RecordingGraphs(Graphs):
    """Graphs that keep what the blocks are given whenever the first of them runs."""

    def __init__(self, bundle: Bundle, variant: str, backend: Backend) -> None:
        super().__init__(bundle, variant, backend)
        self.passes: list[Pass] = []
        self._blocks: dict[str, Mapping[str, Buffer]] = {}
        self._others: dict[str, Buffer] = {}
        self._text: tuple[tuple[Array, Array], ...] | None = None

    def bind(
        self, name: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]
    ) -> Binding:
        """Fix the buffers of a graph, and remember what the blocks and their ends are given."""
        if graph_names.is_block(name):
            self._blocks[name] = inputs
        elif name in (graph_names.TIMESTEP, graph_names.FINAL_LAYER):
            self._others |= inputs
        return super().bind(name, inputs, outputs)

    def run(self, binding: Binding) -> None:
        """Run a graph; in front of the first block, keep a pass."""
        if binding.graph == _FIRST:
            self.passes.append(self._read())
        elif binding.graph == graph_names.PROMPT:
            self._text = None
        super().run(binding)

    def _read(self) -> Pass:
        read = self.memory.download
        if self._text is None:  # passes of one prompt share it: it is most of what is kept
            self._text = tuple(
                (read(inputs["text_k"]), read(inputs["text_v"]))
                for _, inputs in sorted(self._blocks.items())
            )
        first = self._blocks[_FIRST].items()
        return Pass(
            timestep=float(read(self._others["timestep"]).max()),
            inputs={name: read(data) for name, data in first if name not in _TEXT},
            text=self._text,
            embedding=read(self._others["embedding"]),
        )
