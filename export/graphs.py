"""The graphs of a bundle: for each its module, its weights, its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sana_rt import geometry, graph_names
from sana_rt.export import autoencoders
from sana_rt.export.checkpoint import Checkpoint
from sana_rt.export.graph_definition import DType, GraphDefinition
from sana_rt.export.modules.block import Depthwise
from sana_rt.export.modules.gemma2 import Gemma2Encoder
from sana_rt.export.modules.solver import SolverStep
from sana_rt.export.modules.transformer import parts
from sana_rt.graph_names import SOLVER, TEXT_ENCODER
from sana_rt.model_spec import ModelSpec, VAESpec
from sana_rt.signatures import Signature, signature


def definitions(checkpoint: Checkpoint, dtype: DType) -> tuple[GraphDefinition, ...]:
    """The graphs of a checkpoint's parts, in the order in which a clip needs them."""
    graphs = [*transformer_graphs(checkpoint.spec, dtype)]
    if checkpoint.text_encoder is not None:
        graphs.insert(0, text_encoder_graph(checkpoint.spec, dtype))
    if checkpoint.vae is not None:
        graphs += vae_graphs(checkpoint.spec.vae, dtype)
    return tuple(graphs)


def transformer_graphs(spec: ModelSpec, dtype: DType) -> tuple[GraphDefinition, ...]:
    """The graphs from the prompt's keys to the solver, in the order in which they run."""
    # float32 is what CPUs run, bfloat16 is what TensorRT builds; see Depthwise
    depthwise: Depthwise = "conv" if dtype == "float32" else "shifted"
    graphs = []
    for name, part in parts(spec.transformer, depthwise).items():
        topology = "block" if graph_names.is_block(name) else name
        tensors = _signature(name, spec, dtype)
        graphs.append(
            GraphDefinition(name, topology, dtype, part.build, *tensors, prefix=part.prefix)
        )
    tensors = _signature(SOLVER, spec, dtype)
    return (*graphs, GraphDefinition(SOLVER, SOLVER, dtype, SolverStep, *tensors))


def text_encoder_graph(spec: ModelSpec, dtype: DType) -> GraphDefinition:
    """The text encoder; its hidden states are float32 in every variant."""
    tensors = _signature(TEXT_ENCODER, spec, dtype)
    build = partial(Gemma2Encoder, spec.text)
    return GraphDefinition(
        TEXT_ENCODER, TEXT_ENCODER, dtype, build, *tensors, source="text_encoder"
    )


def _signature(name: str, spec: ModelSpec, dtype: DType) -> Signature:
    found = signature(name, spec, dtype)
    assert found is not None, "what is exported has a signature"
    return found


def vae_graphs(spec: VAESpec, dtype: DType) -> tuple[GraphDefinition, ...]:
    """The autoencoder's graphs: none for a kind that has none."""
    autoencoder = autoencoders.find(spec)
    return () if autoencoder is None else autoencoder.graphs(dtype)


@dataclass(frozen=True)
class Sizes:
    """The dimensions that a caller chooses freely; all others follow from them.

    ``seen`` are the latent frames of a decoder's window.
    """

    batch: int
    frames: int
    rows: int
    columns: int
    length: int
    seen: int = 3

    def dims(self, spec: ModelSpec) -> dict[str, int]:
        """Every named dimension of every graph."""
        stride, (_, ph, pw) = spec.vae.spatial_stride, spec.transformer.patch_size
        height, width = self.rows * ph * stride, self.columns * pw * stride
        chosen = {"batch": self.batch, "length": self.length, "seen": self.seen}
        clip = geometry.clip_dims(spec, self.frames)
        return chosen | clip | geometry.size_dims(spec, height, width)
