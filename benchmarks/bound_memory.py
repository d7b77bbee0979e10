"""The device memory of a whole job, by phase, from compiled plans: without weights or a card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from sana_rt import geometry
from sana_rt import manifest as manifests
from sana_rt.bundle import Bundle
from sana_rt.errors import BackendError
from sana_rt.export import autoencoders
from sana_rt.export.graphs import text_encoder_graph, transformer_graphs, vae_graphs
from sana_rt.manifest import File, Graph, Manifest, Source, Variant
from sana_rt.model_spec import ModelSpec
from sana_rt.runtime.backends.base import PLAN_CONTEXT_BYTES, Artifact, Backend, Context, Entry
from sana_rt.runtime.backends.host import HostMemory
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.inputs import NO_INPUTS
from sana_rt.runtime.job import Job
from sana_rt.runtime.memory import MemoryPlan
from sana_rt.runtime.phases import Planner
from sana_rt.runtime.request import dims, for_model

_VARIANT = "planned"
_NOWHERE = Path("nowhere")


def plans(
    model: ModelSpec, weights: Mapping[str, int], activations: Mapping[str, int], frames: int
) -> tuple[MemoryPlan, ...]:
    """Plans of the model's default clip of ``frames`` frames, one for each way to decode it.

    The way that takes the most memory is the first. ``weights`` and ``activations`` are bytes of
    the plan of each graph.
    """
    manifest = _manifest(model, weights)
    graphs = Graphs(Bundle(_NOWHERE, manifest), _VARIANT, _Compiled(activations))
    request = for_model(model, {"prompt": "anything", "num_frames": frames})
    job = Job(model, request, NO_INPUTS)
    sizes = {file.path: file.bytes for file in manifest.files}
    planner = Planner(graphs, sizes, keep_text_encoder=False)
    ways = planner.ways(job) if graphs.decoder is not None else (None,)
    named = dims(request, model) | geometry.clip_dims(model, job.longest)
    named["length"] = model.text.max_tokens
    if graphs.decoder is not None:
        named["seen"] = graphs.decoder.seen
    phases = (planner.phases(job, way) for way in ways)
    return tuple(MemoryPlan("tensorrt", each, named, staged=True) for each in phases)


class _Compiled(Backend):
    """Plans that were compiled and thrown away."""

    context_bytes = PLAN_CONTEXT_BYTES

    def __init__(self, activations: Mapping[str, int]) -> None:
        super().__init__("tensorrt", HostMemory())
        self._activations = activations

    def open(self, artifact: Artifact, *, lasting: bool = True) -> Context:
        """There is nothing to open."""
        del lasting
        raise BackendError(f"The plan of {artifact.name!r} was not kept.")

    def activation_bytes(self, entries: Iterable[Entry]) -> int:
        """What the largest of them needs."""
        return max(self._activations[Path(entry.path).stem] for entry in entries)


def _manifest(model: ModelSpec, weights: Mapping[str, int]) -> Manifest:
    """Signatures, and files whose sizes are those of the plans' weights."""
    definitions = (
        text_encoder_graph(model, "bfloat16"),
        *transformer_graphs(model, "bfloat16"),
        *vae_graphs(model.vae, "bfloat16"),
    )
    graphs = {
        each.name: Graph(f"{each.name}.onnx", (), 20, each.inputs, each.outputs)
        for each in definitions
        if each.name in weights
    }
    autoencoder = autoencoders.find(model.vae)
    decoder = None if autoencoder is None else autoencoder.window()
    files = tuple(File(graph.path, weights[name], "0" * 64) for name, graph in graphs.items())
    source = Source("compiled plans", "none", "0" * 64)
    variants = {_VARIANT: Variant("bfloat16", "", source, graphs, decoder=decoder)}
    return Manifest(
        manifests.FORMAT, manifests.FORMAT_VERSION, "sana-rt bound", model, files, variants
    )
