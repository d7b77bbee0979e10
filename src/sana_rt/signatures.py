"""The inputs and outputs that each graph of a model has: names, types and shapes, in order.

All of them follow from the model's specification; docs/architecture.md says what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from sana_rt.graph_names import (
    DECODER,
    DECODER_FIRST,
    DECODER_WHOLE,
    ENCODER,
    FINAL_LAYER,
    PATCH_EMBED,
    PROMPT,
    ROPE,
    SOLVER,
    TEXT_ENCODER,
    TIMESTEP,
    is_block,
    role,
)
from sana_rt.model_spec import LTX2VAESpec, ModelSpec, TransformerSpec, VAESpec, WanVAESpec
from sana_rt.tensors import Dim, Shape, TensorSpec

if TYPE_CHECKING:
    from sana_rt.decode_window import DecodeWindow

#: How the names of the tensors begin that the decoder hands from one call to the next.
CACHE_PREFIX: Final = "cache_"
#: Frames of the past that a causal convolution of Wan's sees: its kernel has three in time.
WAN_CACHE_FRAMES: Final = 2

#: Latent frames that a decoder sees which looks ahead: fewer at the end of a clip.
SEEN: Final[Dim] = "seen"

BATCH: Final[Dim] = "batch"
_SIZE: Final[Shape] = ("height", "width")
_LATENT_SIZE: Final[Shape] = ("latent_height", "latent_width")
_GRID: Final[Shape] = ("frames", "rows", "columns")


class Signature(NamedTuple):
    """What goes into a graph and what comes out of it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def signature(
    name: str, model: ModelSpec, dtype: str, window: DecodeWindow | None = None
) -> Signature | None:
    """The signature of the graph called ``name``, its weights in ``dtype``.

    ``window`` says how the decoder is called. None for a graph that this release does not know,
    and for those that an autoencoder has none of. Of a decoder, memory grows with
    :func:`wan_cache_count`.
    """
    if is_block(name):
        return _block(model, dtype)
    found = role(name)
    if found is not None and found.part == "autoencoder":
        return autoencoder(name, model.vae, dtype, window)
    known = _TRANSFORMER.get(name)
    return None if known is None else known(model, dtype)


def autoencoder(
    name: str, vae: VAESpec, dtype: str, window: DecodeWindow | None = None
) -> Signature | None:
    """The signature of an autoencoder's graph; None for one that its kind does not have."""
    if isinstance(vae, WanVAESpec):
        wan = _WAN.get(name)
        return None if wan is None else wan(vae, dtype)
    if isinstance(vae, LTX2VAESpec) and (window is not None or name in _LTX2_APART):
        return _ltx2(name, vae, dtype, window)
    return None


def wan_cache_count(vae: WanVAESpec) -> int:
    """How many caches Wan's decoder has: one for each causal convolution."""
    ends, middle, a_level = 2, 4, 2 * (vae.num_res_blocks + 1)
    return ends + middle + a_level * len(vae.dim_mult) + sum(vae.temporal_downsample)


def _f32(name: str, *shape: Dim) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def _next(tensor: TensorSpec) -> TensorSpec:
    """The output that an input becomes in the next run."""
    return TensorSpec(f"{tensor.name}_out", tensor.dtype, tensor.shape)


def _latents(name: str, channels: int) -> TensorSpec:
    return _f32(name, BATCH, channels, "frames", *_LATENT_SIZE)


def _text_encoder(model: ModelSpec, _: str) -> Signature:
    """Its hidden states are float32 in every variant."""
    shape: Shape = (BATCH, "length")
    tokens = (TensorSpec(name, "int64", shape) for name in ("input_ids", "attention_mask"))
    return Signature(tuple(tokens), (_f32("hidden_states", *shape, model.text.hidden_size),))


def _text(model: ModelSpec, dtype: str, *leading: Dim) -> tuple[TensorSpec, ...]:
    """Keys and values of the cross attention, and the bias that hides padding."""
    t, length = model.transformer, model.text.max_tokens
    shape = (*leading, BATCH, t.num_cross_heads, length, t.cross_head_dim)
    keys = (TensorSpec(name, dtype, shape) for name in ("text_k", "text_v"))
    return (*keys, TensorSpec("text_bias", dtype, (BATCH, 1, 1, length)))


def _prompt(model: ModelSpec, dtype: str) -> Signature:
    t, length = model.transformer, model.text.max_tokens
    mask = TensorSpec("attention_mask", "int64", (BATCH, length))
    hidden = _f32("hidden_states", BATCH, length, t.caption_channels)
    return Signature((hidden, mask), _text(model, dtype, t.num_layers))


def _rope_tables(spec: TransformerSpec) -> tuple[TensorSpec, ...]:
    return tuple(
        _f32(f"rope_{axis}", dim, channels // 2, 2)
        for axis, dim, channels in zip("thw", _GRID, spec.rope_dims, strict=True)
    )


def _rope(model: ModelSpec, _: str) -> Signature:
    names = zip(("frame", "row", "column"), _GRID, strict=True)
    indices = tuple(TensorSpec(f"{name}_index", "int64", (dim,)) for name, dim in names)
    return Signature(indices, _rope_tables(model.transformer))


def _modulation(spec: TransformerSpec, dtype: str) -> TensorSpec:
    return TensorSpec("modulation", dtype, (BATCH, "frames", 6, spec.width))


def _embedding(spec: TransformerSpec, dtype: str) -> TensorSpec:
    return TensorSpec("embedding", dtype, (BATCH, "frames", spec.width))


def _tokens(spec: TransformerSpec, dtype: str) -> TensorSpec:
    return TensorSpec("tokens", dtype, (BATCH, *_GRID, spec.width))


def _timestep(model: ModelSpec, dtype: str) -> Signature:
    t = model.transformer
    timestep = _f32("timestep", BATCH, "frames")
    return Signature((timestep,), (_modulation(t, dtype), _embedding(t, dtype)))


def _patch_embed(model: ModelSpec, dtype: str) -> Signature:
    t = model.transformer
    return Signature((_latents("latents", t.in_channels),), (_tokens(t, dtype),))


def _state(spec: TransformerSpec, dtype: str) -> tuple[TensorSpec, ...]:
    heads, d = spec.num_heads, spec.head_dim
    return (
        _f32("state_s", BATCH, heads, d, d),
        _f32("state_k", BATCH, heads, d),
        TensorSpec("state_z", dtype, (BATCH, "rows", "columns", spec.width)),
    )


def _block(model: ModelSpec, dtype: str) -> Signature:
    t = model.transformer
    tokens, state = _tokens(t, dtype), _state(t, dtype)
    read = (_modulation(t, dtype), *_text(model, dtype), *_rope_tables(t))
    return Signature((tokens, *read, *state), tuple(map(_next, (tokens, *state))))


def _final_layer(model: ModelSpec, dtype: str) -> Signature:
    t = model.transformer
    inputs = (_tokens(t, dtype), _embedding(t, dtype))
    return Signature(inputs, (_latents("velocity", t.out_channels),))


def _solver(model: ModelSpec, _: str) -> Signature:
    names = ("latents", "velocity_negative", "velocity_positive", "previous_sample", "noise")
    inputs, outputs = (
        tuple(_latents(name, model.transformer.in_channels) for name in each)
        for each in (names, ("latents_out", "sample"))
    )
    return Signature((*inputs, _f32("coefficients", "frames", 6)), outputs)


_TRANSFORMER: Final[Mapping[str, Callable[[ModelSpec, str], Signature]]] = {
    TEXT_ENCODER: _text_encoder,
    PROMPT: _prompt,
    ROPE: _rope,
    TIMESTEP: _timestep,
    PATCH_EMBED: _patch_embed,
    FINAL_LAYER: _final_layer,
    SOLVER: _solver,
}


def _vae_latents(vae: VAESpec, frames: Dim = 1) -> TensorSpec:
    return _f32("latents", BATCH, vae.latent_channels, frames, *_LATENT_SIZE)


def _frames(count: Dim) -> TensorSpec:
    return TensorSpec("frames", "uint8", (BATCH, count, *_SIZE, 3))


def _decoder_first(vae: WanVAESpec, dtype: str) -> Signature:
    return Signature((_vae_latents(vae),), (_frames(1), *map(_next, _wan_caches(vae, dtype))))


def _decoder(vae: WanVAESpec, dtype: str) -> Signature:
    caches = tuple(_wan_caches(vae, dtype))
    frames = _frames(vae.temporal_stride)
    return Signature((_vae_latents(vae), *caches), (frames, *map(_next, caches)))


def _encoder(vae: VAESpec, _: str) -> Signature:
    image = TensorSpec("image", "uint8", (BATCH, *_SIZE, 3))
    return Signature((image,), (_vae_latents(vae),))


_WAN: Final[Mapping[str, Callable[[WanVAESpec, str], Signature]]] = {
    DECODER_FIRST: _decoder_first,
    DECODER: _decoder,
    ENCODER: _encoder,
}


def _wan_caches(vae: WanVAESpec, dtype: str) -> Iterator[TensorSpec]:
    """The last frames that each causal convolution saw, in the order of the computation.

    Height and width are ``latent_height``, ``latent_height_x2``, ... and, at the size of the
    frames, ``height``: one name for one number in all graphs of a bundle.
    """
    for index, (channels, scale) in enumerate(_wan_convolutions(vae)):
        size = (_scaled(axis, scale, vae.spatial_stride) for axis in _SIZE)
        shape = (BATCH, WAN_CACHE_FRAMES, channels, *size)
        yield TensorSpec(f"{CACHE_PREFIX}{index:02d}", dtype, shape)


def _wan_convolutions(vae: WanVAESpec) -> Iterator[tuple[int, int]]:
    """Input channels of the decoder's causal convolutions, and the scale over the latents.

    From the latents to the widest level, two residual blocks, then level by level: residual
    blocks of two convolutions, and one in time where the level doubles the frames. Upsampling
    halves the channels.
    """
    widths = [vae.base_dim * mult for mult in reversed(vae.dim_mult)]
    yield vae.latent_channels, 1
    yield from [(widths[0], 1)] * 4
    doubling = (*reversed(vae.temporal_downsample), False)
    inputs = (widths[0], *(width // 2 for width in widths))
    for level, (width, doubles) in enumerate(zip(widths, doubling, strict=True)):
        yield inputs[level], 2**level
        yield from [(width, 2**level)] * (2 * vae.num_res_blocks + 1)
        if doubles:
            yield width, 2**level
    yield widths[-1], 2 ** (len(widths) - 1)


def _scaled(axis: Dim, scale: int, spatial_stride: int) -> str:
    if scale == spatial_stride:
        return str(axis)
    return f"latent_{axis}" if scale == 1 else f"latent_{axis}_x{scale}"


#: The graphs of LTX-2 that do not depend on the window.
_LTX2_APART: Final = (DECODER_WHOLE, ENCODER)


def _ltx2(name: str, vae: LTX2VAESpec, dtype: str, window: DecodeWindow | None) -> Signature:
    """A clip at once, or in windows whose frames fade from one to the next.

    The cache holds the frames behind those that a call gives, as it sees them.
    """
    if name == ENCODER:
        return _encoder(vae, dtype)
    if name == DECODER_WHOLE:
        return Signature((_vae_latents(vae, "frames"),), (_frames("video_frames"),))
    assert window is not None, "who asks for the graph of a window gives it"
    shape: Shape = (BATCH, window.blend, 3, *_SIZE)
    caches = (TensorSpec(f"{CACHE_PREFIX}00", dtype, shape),) if window.blend else ()
    if name == DECODER_FIRST:
        first = _vae_latents(vae, window.first_seen)
        return Signature((first,), (_frames(window.first_frames), *map(_next, caches)))
    seen = SEEN if window.lookahead else window.seen
    return Signature(
        (_vae_latents(vae, seen), *caches), (_frames(window.frames), *map(_next, caches))
    )
