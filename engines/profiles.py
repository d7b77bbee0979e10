"""The optimization profile that each graph of a bundle needs to serve a workload."""

from __future__ import annotations

from sana_rt import geometry, graph_names
from sana_rt.decode_window import DecodeWindow
from sana_rt.engines.workloads import Span, Workload
from sana_rt.errors import ProfileError
from sana_rt.manifest import DimRange, Graph
from sana_rt.model_spec import ModelSpec


def profile(
    name: str,
    graph: Graph,
    model: ModelSpec,
    workload: Workload,
    decoder: DecodeWindow | None = None,
) -> dict[str, DimRange]:
    """The range of each named dimension of the inputs of the graph called ``name``.

    ``decoder`` is that of the graph's variant.

    Raises:
        RequestError: a size that the model cannot make, or beyond its positions.
        ProfileError: a range that is out of order, or a dimension that no workload sets.
    """
    ranges = _ranges(model, workload)
    if graph_names.is_single(name):
        ranges["batch"] = DimRange.fixed(1)
    if decoder is not None:
        ranges["seen"] = DimRange(decoder.seen - decoder.lookahead, decoder.seen, decoder.seen)
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
        _range(name, getattr(workload, name)) for name in ("num_frames", "height", "width")
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
