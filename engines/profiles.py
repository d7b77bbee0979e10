"""Workloads, and the optimization profile that each graph of a bundle needs to serve one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec

from sana_rt.errors import ProfileError, UsageError
from sana_rt.files import storage_errors
from sana_rt.manifest import DimRange, Graph
from sana_rt.model_spec import Count, Frozen, ModelSpec, StreamingSpec

Span = Count | DimRange

#: Graphs that see one clip, not both halves of classifier-free guidance.
SINGLE: Final = (
    "text_encoder",
    "solver",
    "vae_decoder_first",
    "vae_decoder",
    "vae_encoder",
)


class Workload(Frozen, frozen=True):
    """What plans are built for: each size one number, or ``{min, opt, max}``.

    ``batch`` counts the samples of a forward pass (2 with classifier-free guidance), ``frames``,
    ``height`` and ``width`` are those of the video, ``length`` is that of a tokenized prompt.
    """

    frames: Span
    height: Span
    width: Span
    batch: Span = 2
    length: Span = DimRange(1, 512, 1024)
    description: str = ""


def for_model(model: ModelSpec) -> Workload:
    """The workload of the model's default request."""
    sampling = model.sampling
    return Workload(
        frames=sampling.num_frames,
        height=sampling.height,
        width=sampling.width,
        batch=1 if sampling.guidance_scale == 1 else 2,
        description=f"the defaults of {model.name}",
    )


def read(path: Path) -> Workload:
    """A workload from a TOML file; unknown keys are refused."""
    with storage_errors(path):
        data = path.read_bytes()
    try:
        return msgspec.convert(tomllib.loads(data.decode()), Workload)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(
            f"{path} is not a workload: {error}.",
            expected="TOML with frames, height, width and, if they differ from the default, "
            "batch and length: each a number or {min, opt, max}.",
        ) from error


def profile(name: str, graph: Graph, model: ModelSpec, workload: Workload) -> dict[str, DimRange]:
    """The range of each named dimension of the inputs of the graph called ``name``.

    Raises:
        RequestError: a size that the model cannot make.
        ProfileError: a range that is out of order or beyond the model's positions, or a
            dimension that no workload sets.
    """
    ranges = _ranges(model, workload)
    if name in SINGLE:
        ranges["batch"] = DimRange.fixed(1)
    named = {dim for tensor in graph.inputs for dim in tensor.shape if isinstance(dim, str)}
    unknown = sorted(named - set(ranges))
    if unknown:
        raise ProfileError(
            f"{name} has inputs with the dimensions {unknown}.",
            expected=f"dimensions that a workload sets: {sorted(ranges)}.",
        )
    return {dim: ranges[dim] for dim in sorted(named)}


def _ranges(model: ModelSpec, workload: Workload) -> dict[str, DimRange]:
    """Every named dimension of docs/architecture.md."""
    _, patch_height, patch_width = model.transformer.patch_size
    stride = model.vae.spatial_stride
    ranges = {
        "batch": _range("batch", workload.batch),
        "length": _range("length", workload.length),
        "frames": _frames(model, _range("frames", workload.frames)),
    }
    for axis, span, patch, unit in (
        ("height", workload.height, patch_height, "rows"),
        ("width", workload.width, patch_width, "columns"),
    ):
        pixels = _range(axis, span)
        for size in (pixels.min, pixels.opt, pixels.max):
            model.latent_size(size, size)  # refuses what is no size
        latent = _scaled(pixels, over=stride)
        ranges |= {axis: pixels, f"latent_{axis}": latent, unit: _scaled(latent, over=patch)}
        for scale in (2**power for power in range(1, stride.bit_length())):
            ranges[f"latent_{axis}_x{scale}"] = _scaled(latent, by=scale)
        _check_positions(unit, ranges[unit], model)
    return ranges


def _range(name: str, span: Span) -> DimRange:
    if isinstance(span, int):
        return DimRange.fixed(span)
    if not span.min <= span.opt <= span.max:
        raise ProfileError(
            f"The workload's {name} is {span.min} to {span.max}, tuned for {span.opt}.",
            expected="min <= opt <= max.",
        )
    return span


def _scaled(span: DimRange, *, by: int = 1, over: int = 1) -> DimRange:
    return DimRange(span.min * by // over, span.opt * by // over, span.max * by // over)


def _frames(model: ModelSpec, video: DimRange) -> DimRange:
    """Latent frames of a forward pass: the whole clip's, or those of a chunk.

    A block-causal clip is cut into equal chunks, of which the first also takes the remainder;
    one shorter than two chunks is not cut (LongSANA's sampling script).
    """
    count = model.latent_frames
    latent = DimRange(count(video.min), count(video.opt), count(video.max))
    _check_positions("latent frames", latent, model)
    chunk = (model.streaming or StreamingSpec()).chunk_frames
    if not model.transformer.causal or latent.max < 2 * chunk:
        return latent
    if latent.is_fixed:
        return DimRange(chunk, chunk, chunk + latent.max % chunk)
    return DimRange(min(chunk, latent.min), chunk, 2 * chunk - 1)


def _check_positions(what: str, span: DimRange, model: ModelSpec) -> None:
    limit = model.transformer.rope_max_positions
    if span.max > limit:
        raise ProfileError(
            f"The workload asks for {what} {span}.",
            expected=f"{what} 1..{limit}, the positions that {model.name} has.",
            remedy="build for a shorter or smaller video.",
        )
