"""Workloads, and the optimization profile that each graph of a bundle needs to serve one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from sana_rt import geometry, graph_names
from sana_rt.errors import ProfileError, UsageError
from sana_rt.files import storage_errors
from sana_rt.manifest import DimRange, Graph
from sana_rt.model_spec import Count, Frozen, ModelSpec

Span = Count | DimRange


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
    """The workload of the model's default request; of a block-causal model, any length."""
    sampling = model.sampling
    frames: Span = sampling.num_frames
    if model.transformer.causal:
        frames = DimRange(1, sampling.num_frames, geometry.longest_clip(model))
    return Workload(
        frames=frames,
        height=sampling.height,
        width=sampling.width,
        batch=geometry.batch_size(sampling.guidance_scale),
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
        RequestError: a size that the model cannot make, or beyond its positions.
        ProfileError: a range that is out of order, or a dimension that no workload sets.
    """
    ranges = _ranges(model, workload)
    if graph_names.is_single(name):
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
    frames, height, width = (
        _range(name, getattr(workload, name)) for name in ("frames", "height", "width")
    )
    fps = model.sampling.fps
    geometry.check_positions(model, frames.max, height.max, width.max, fps)
    low, tuned, high = (
        geometry.size_dims(model, getattr(height, end), getattr(width, end))
        for end in ("min", "opt", "max")
    )
    return {
        "batch": _range("batch", workload.batch),
        "length": _range("length", workload.length),
        "frames": _chunk_range(model, frames),
        **{name: DimRange(low[name], tuned[name], high[name]) for name in low},
    }


def _range(name: str, span: Span) -> DimRange:
    if isinstance(span, int):
        return DimRange.fixed(span)
    if not span.min <= span.opt <= span.max:
        raise ProfileError(
            f"The workload's {name} is {span.min} to {span.max}, tuned for {span.opt}.",
            expected="min <= opt <= max.",
        )
    return span


def _chunk_range(model: ModelSpec, clip: DimRange) -> DimRange:
    """Latent frames of a forward pass: the whole clip's, or those of a chunk."""
    count = model.latent_frames
    latent = geometry.Lengths(count(clip.min), count(clip.opt), count(clip.max))
    return DimRange(*geometry.chunk_lengths(model, latent))
