"""The graphs of a bundle: for each its module, its weights, its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

from sana_rt import geometry, graph_names
from sana_rt.export import autoencoders
from sana_rt.export.checkpoint import Checkpoint
from sana_rt.export.graph_definition import (
    BATCH,
    LATENT_SIZE,
    DType,
    GraphDefinition,
    Signature,
    f32,
    next_value,
)
from sana_rt.export.modules.block import Depthwise
from sana_rt.export.modules.gemma2 import Gemma2Encoder
from sana_rt.export.modules.solver import SolverStep
from sana_rt.export.modules.transformer import parts
from sana_rt.graph_names import (
    FINAL_LAYER,
    PATCH_EMBED,
    PROMPT,
    ROPE,
    SOLVER,
    TEXT_ENCODER,
    TIMESTEP,
)
from sana_rt.model_spec import ModelSpec, TransformerSpec, VAESpec
from sana_rt.tensors import Shape, TensorSpec

#: The token grid.
_GRID: Final[Shape] = ("frames", "rows", "columns")


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
    signatures = _transformer_signatures(spec, dtype)
    block = signatures.pop("block")
    blocks = set(graph_names.blocks(spec.transformer.num_layers))
    graphs = []
    for name, part in parts(spec.transformer, depthwise).items():
        topology = "block" if name in blocks else name
        inputs, outputs = block if name in blocks else signatures[name]
        graphs.append(
            GraphDefinition(name, topology, dtype, part.build, inputs, outputs, prefix=part.prefix)
        )
    inputs, outputs = _solver_signature(spec)
    return (
        *graphs,
        GraphDefinition(SOLVER, SOLVER, dtype, SolverStep, inputs, outputs),
    )


def _transformer_signatures(spec: ModelSpec, dtype: DType) -> dict[str, Signature]:
    t = spec.transformer
    text = (t.num_cross_heads, spec.text.max_tokens, t.cross_head_dim)
    hidden = f32("hidden_states", BATCH, spec.text.max_tokens, t.caption_channels)
    keys = TensorSpec("attention_mask", "int64", (BATCH, spec.text.max_tokens))
    stacked = [
        TensorSpec(name, dtype, (t.num_layers, BATCH, *text)) for name in ("text_k", "text_v")
    ]
    per_block = [TensorSpec(name, dtype, (BATCH, *text)) for name in ("text_k", "text_v")]
    bias = TensorSpec("text_bias", dtype, (BATCH, 1, 1, spec.text.max_tokens))
    tokens = TensorSpec("tokens", dtype, (BATCH, *_GRID, t.width))
    modulation = TensorSpec("modulation", dtype, (BATCH, "frames", 6, t.width))
    embedding = TensorSpec("embedding", dtype, (BATCH, "frames", t.width))
    rope = _rope_tables(t)
    state = _state(t, dtype)
    latents = _latents("latents", t.in_channels)
    velocity = _latents("velocity", t.out_channels)
    indices = [
        TensorSpec(f"{name}_index", "int64", (dim,))
        for name, dim in (("frame", "frames"), ("row", "rows"), ("column", "columns"))
    ]
    return {
        PROMPT: ((hidden, keys), (*stacked, bias)),
        ROPE: (tuple(indices), rope),
        TIMESTEP: ((f32("timestep", BATCH, "frames"),), (modulation, embedding)),
        PATCH_EMBED: ((latents,), (tokens,)),
        "block": (
            (tokens, modulation, *per_block, bias, *rope, *state),
            tuple(next_value(tensor) for tensor in (tokens, *state)),
        ),
        FINAL_LAYER: ((tokens, embedding), (velocity,)),
    }


def _rope_tables(spec: TransformerSpec) -> tuple[TensorSpec, ...]:
    return tuple(
        f32(f"rope_{axis}", dim, channels // 2, 2)
        for axis, dim, channels in zip("thw", _GRID, spec.rope_dims, strict=True)
    )


def _state(spec: TransformerSpec, dtype: DType) -> tuple[TensorSpec, ...]:
    heads, d = spec.num_heads, spec.head_dim
    return (
        f32("state_s", BATCH, heads, d, d),
        f32("state_k", BATCH, heads, d),
        TensorSpec("state_z", dtype, (BATCH, "rows", "columns", spec.width)),
    )


def _solver_signature(spec: ModelSpec) -> Signature:
    names = ("latents", "velocity_negative", "velocity_positive", "previous_sample", "noise")
    tensors = [_latents(name, spec.transformer.in_channels) for name in names]
    outputs = [_latents(name, spec.transformer.in_channels) for name in ("latents_out", "sample")]
    return (*tensors, f32("coefficients", "frames", 6)), tuple(outputs)


def text_encoder_graph(spec: ModelSpec, dtype: DType) -> GraphDefinition:
    """The text encoder; its hidden states are float32 in every variant."""
    shape = (BATCH, "length")
    return GraphDefinition(
        TEXT_ENCODER,
        TEXT_ENCODER,
        dtype,
        partial(Gemma2Encoder, spec.text),
        tuple(TensorSpec(name, "int64", shape) for name in ("input_ids", "attention_mask")),
        (f32("hidden_states", *shape, spec.text.hidden_size),),
        source="text_encoder",
    )


def vae_graphs(spec: VAESpec, dtype: DType) -> tuple[GraphDefinition, ...]:
    """The autoencoder's graphs: none for a kind that has none."""
    autoencoder = autoencoders.find(spec)
    return () if autoencoder is None else autoencoder.graphs(dtype)


def _latents(name: str, channels: int) -> TensorSpec:
    return f32(name, BATCH, channels, "frames", *LATENT_SIZE)


@dataclass(frozen=True)
class Sizes:
    """The dimensions that a caller chooses freely; all others follow from them."""

    batch: int
    frames: int
    rows: int
    columns: int
    length: int

    def dims(self, spec: ModelSpec) -> dict[str, int]:
        """Every named dimension of every graph."""
        stride, (_, ph, pw) = spec.vae.spatial_stride, spec.transformer.patch_size
        height, width = self.rows * ph * stride, self.columns * pw * stride
        chosen = {"batch": self.batch, "frames": self.frames, "length": self.length}
        return chosen | geometry.size_dims(spec, height, width)
