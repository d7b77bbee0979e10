"""The graphs of a bundle: for each its module, its weights, its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch
from torch import nn

from sana_rt import geometry, graph_names
from sana_rt.export.checkpoint import Checkpoint, PartName
from sana_rt.export.modules.block import Depthwise
from sana_rt.export.modules.gemma2 import Gemma2Encoder
from sana_rt.export.modules.solver import SolverStep
from sana_rt.export.modules.transformer import parts
from sana_rt.export.modules.wan_decoder import WanDecoder, WanDecoderFirst
from sana_rt.export.modules.wan_encoder import WanEncoder
from sana_rt.graph_names import (
    DECODER,
    DECODER_FIRST,
    ENCODER,
    FINAL_LAYER,
    PATCH_EMBED,
    PROMPT,
    ROPE,
    SOLVER,
    TEXT_ENCODER,
    TIMESTEP,
)
from sana_rt.manifest import CACHE_PREFIX, DecodeWindow
from sana_rt.model_spec import ModelSpec, TransformerSpec, VAESpec
from sana_rt.tensors import Dim, Shape, TensorSpec

DType = Literal["float32", "bfloat16"]

#: A token's text, grid and chunk sizes: the dimensions that a caller chooses.
_GRID: Final[Shape] = ("frames", "rows", "columns")
_LATENT_SIZE: Final[Shape] = ("latent_height", "latent_width")
_SIZE: Final[Shape] = ("height", "width")
_BATCH: Final[Dim] = "batch"


Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


@dataclass(frozen=True)
class GraphDefinition:
    """One graph before it is traced.

    ``source`` is the part of the checkpoint that its weights come from, under ``prefix``.
    Graphs with the same ``topology`` differ in nothing but their weights.
    """

    name: str
    topology: str
    dtype: DType
    build: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source: PartName = "transformer"
    prefix: str = ""


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
    hidden = f32("hidden_states", _BATCH, spec.text.max_tokens, t.caption_channels)
    keys = TensorSpec("attention_mask", "int64", (_BATCH, spec.text.max_tokens))
    stacked = [
        TensorSpec(name, dtype, (t.num_layers, _BATCH, *text)) for name in ("text_k", "text_v")
    ]
    per_block = [TensorSpec(name, dtype, (_BATCH, *text)) for name in ("text_k", "text_v")]
    bias = TensorSpec("text_bias", dtype, (_BATCH, 1, 1, spec.text.max_tokens))
    tokens = TensorSpec("tokens", dtype, (_BATCH, *_GRID, t.width))
    modulation = TensorSpec("modulation", dtype, (_BATCH, "frames", 6, t.width))
    embedding = TensorSpec("embedding", dtype, (_BATCH, "frames", t.width))
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
        TIMESTEP: ((f32("timestep", _BATCH, "frames"),), (modulation, embedding)),
        PATCH_EMBED: ((latents,), (tokens,)),
        "block": (
            (tokens, modulation, *per_block, bias, *rope, *state),
            tuple(_next(tensor) for tensor in (tokens, *state)),
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
        f32("state_s", _BATCH, heads, d, d),
        f32("state_k", _BATCH, heads, d),
        TensorSpec("state_z", dtype, (_BATCH, "rows", "columns", spec.width)),
    )


def _solver_signature(spec: ModelSpec) -> Signature:
    names = ("latents", "velocity_negative", "velocity_positive", "previous_sample", "noise")
    tensors = [_latents(name, spec.transformer.in_channels) for name in names]
    outputs = [_latents(name, spec.transformer.in_channels) for name in ("latents_out", "sample")]
    return (*tensors, f32("coefficients", "frames", 6)), tuple(outputs)


def text_encoder_graph(spec: ModelSpec, dtype: DType) -> GraphDefinition:
    """The text encoder; its hidden states are float32 in every variant."""
    shape = (_BATCH, "length")
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
    """The Wan decoder's two steps and the encoder for one image."""
    latents = f32("latents", _BATCH, spec.latent_channels, 1, *_LATENT_SIZE)
    image = TensorSpec("image", "uint8", (_BATCH, *_SIZE, 3))
    caches = _caches(spec, dtype)
    caches_out = tuple(_next(cache) for cache in caches)
    first = TensorSpec("frames", "uint8", (_BATCH, 1, *_SIZE, 3))
    later = TensorSpec("frames", "uint8", (_BATCH, spec.temporal_stride, *_SIZE, 3))

    def graph(name: str, build: Callable[[], nn.Module], signature: Signature) -> GraphDefinition:
        return GraphDefinition(name, name, dtype, build, *signature, source="vae")

    return (
        graph(
            DECODER_FIRST,
            partial(WanDecoderFirst, spec),
            ((latents,), (first, *caches_out)),
        ),
        graph(
            DECODER,
            partial(WanDecoder, spec),
            ((latents, *caches), (later, *caches_out)),
        ),
        graph(ENCODER, partial(WanEncoder, spec), ((image,), (latents,))),
    )


def decode_window(spec: VAESpec) -> DecodeWindow:
    """Wan's decoder: a latent frame a call, and the first is one picture."""
    return DecodeWindow(
        latent_frames=1,
        frames=spec.temporal_stride,
        first_latent_frames=1,
        first_frames=1,
        lookahead=0,
        caches=len(_caches(spec, "float32")),
    )


def _caches(spec: VAESpec, dtype: DType) -> tuple[TensorSpec, ...]:
    with torch.device("meta"):
        specs = WanDecoder(spec).cache_specs()
    return tuple(
        TensorSpec(f"{CACHE_PREFIX}{index:02d}", dtype, cache.shape(spec.spatial_stride))
        for index, cache in enumerate(specs)
    )


def f32(name: str, *shape: Dim) -> TensorSpec:
    """A float32 tensor."""
    return TensorSpec(name, "float32", shape)


def _latents(name: str, channels: int) -> TensorSpec:
    return f32(name, _BATCH, channels, "frames", *_LATENT_SIZE)


def _next(tensor: TensorSpec) -> TensorSpec:
    return TensorSpec(f"{tensor.name}_out", tensor.dtype, tensor.shape)


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
