"""Sizes of clips, chunks and tensors: what follows from a model and a request, in one place.

A clip has video frames and pixels; the transformer sees latent frames, and rows and columns of
tokens. The names of dimensions are those of docs/architecture.md.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from sana_rt.errors import RequestError
from sana_rt.model_spec import ModelSpec

_AXES: Final = ("height", "width")


class Lengths(NamedTuple):
    """The shortest, the usual and the longest of something, in latent frames."""

    shortest: int
    usual: int
    longest: int


def batch_size(guidance_scale: float) -> int:
    """Samples of a forward pass: the prompt's and, with guidance, the negative prompt's."""
    return 1 if guidance_scale == 1 else 2


def video_frames(model: ModelSpec, latent_frames: int) -> int:
    """Video frames of a clip: the first latent frame may be one, each later one is several."""
    return model.vae.video_frames(latent_frames)


def num_frames(seconds: float, fps: int, model: ModelSpec) -> int:
    """Video frames of the shortest clip of at least ``seconds``: whole latent frames.

    Raises :class:`RequestError` if that is no number.
    """
    stride = model.vae.temporal_stride
    pictures = round(float(seconds) * fps, 6)  # 0.1 · 30 is 3.0000000000000004 in binary
    if not math.isfinite(pictures):
        raise RequestError(f"A clip of {seconds:g} s has no number of frames.", expected="less.")
    return math.ceil(pictures / stride) * stride + model.vae.first_frames % stride


def start_seconds(latent_frame: int, fps: int, model: ModelSpec) -> float:
    """When the first picture of a latent frame is shown."""
    return (video_frames(model, latent_frame) if latent_frame else 0) / fps


def size_dims(model: ModelSpec, height: int, width: int) -> dict[str, int]:
    """The named dimensions that follow from a frame's size in pixels.

    Raises :class:`RequestError` for a size that the model cannot make.
    """
    latent = model.latent_size(height, width)
    patch = model.transformer.patch_size[1:]
    units = ("rows", "columns")
    named: dict[str, int] = {}
    for axis, unit, pixels, size, cut in zip(
        _AXES, units, (height, width), latent, patch, strict=True
    ):
        named |= {axis: pixels, f"latent_{axis}": size, unit: size // cut}
        scale = 2  # the autoencoder's stages between latents and pixels
        while scale <= model.vae.spatial_stride:
            named[f"latent_{axis}_x{scale}"] = scale * size
            scale *= 2
    return named


def clip_dims(model: ModelSpec, latent_frames: int) -> dict[str, int]:
    """The named dimensions that follow from the latent frames of a pass."""
    return {"frames": latent_frames, "video_frames": video_frames(model, latent_frames)}


def tokens(model: ModelSpec, latent_frames: int, height: int, width: int) -> int:
    """Tokens of ``latent_frames`` frames of a size in pixels."""
    named = size_dims(model, height, width)
    return latent_frames // model.transformer.patch_size[0] * named["rows"] * named["columns"]


def latents_shape(model: ModelSpec, frames: int, height: int, width: int) -> tuple[int, ...]:
    """The shape (1, C, T, h, w) of a clip's latents, from video frames and pixels."""
    size = model.latent_size(height, width)
    return (1, model.transformer.in_channels, model.latent_frames(frames), *size)


def longest_clip(model: ModelSpec) -> int:
    """The most video frames that the model has rotary positions for."""
    spec = model.transformer
    return video_frames(model, spec.rope_max_positions * spec.patch_size[0])


def check_positions(model: ModelSpec, frames: int, height: int, width: int, fps: int) -> None:
    """Raise :class:`RequestError` for a clip beyond the model's rotary positions."""
    limit, patch = model.transformer.rope_max_positions, model.transformer.patch_size[0]
    named = size_dims(model, height, width)
    longest = longest_clip(model)
    length = f" (at most {longest:,} frames, {longest / fps:.4g} s)"
    for name, count, most in (
        ("latent frames", model.latent_frames(frames) // patch, length),
        ("token rows", named["rows"], ""),
        ("token columns", named["columns"], ""),
    ):
        if count > limit:
            raise RequestError(
                f"The clip has {count:,} {name}.",
                expected=f"at most {limit:,}, the model's rotary positions.",
                remedy=f"ask for a shorter or smaller clip{most}.",
            )


def chunk_ranges(model: ModelSpec, latent_frames: int, start: int = 0) -> tuple[range, ...]:
    """The chunks of a clip from the latent frame ``start`` on: one for a bidirectional model.

    A block-causal clip is cut into equal chunks, of which the first also takes the remainder; what
    is shorter than two chunks is not cut (LongSANA's sampling script).
    """
    size = model.chunking.chunk_frames
    left = latent_frames - start
    if left <= 0:
        return ()
    if not model.transformer.causal or left < 2 * size:
        return (range(start, latent_frames),)
    first = start + size + left % size
    later = (range(begin, begin + size) for begin in range(first, latent_frames, size))
    return (range(start, first), *later)


def chunk_lengths(model: ModelSpec, clip: Lengths) -> Lengths:
    """The lengths of the chunks that :func:`chunk_ranges` cuts clips of such lengths into.

    Of one length, those of a stream from its beginning, which whole chunks may continue. Of
    several lengths, those of any stream: one that continues may be cut anywhere, so its chunks
    have from one to just under twice the usual number of frames.
    """
    size = model.chunking.chunk_frames
    if not model.transformer.causal:
        return clip
    if clip.shortest == clip.longest:
        found = [len(chunk) for chunk in chunk_ranges(model, clip.longest)]
        return Lengths(min(found), min(found), max(found))
    return Lengths(1, min(size, clip.usual), min(clip.longest, 2 * size - 1))
