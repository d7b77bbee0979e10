"""The graphs or plans of a variant on a backend, against the CPU's graphs on the same inputs.

A compiler can be wrong: what a card compiled should be compared once, on that card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from sana_rt import geometry, graph_names
from sana_rt.bundle import Bundle
from sana_rt.decode_window import DecodeWindow
from sana_rt.errors import VerificationError
from sana_rt.manifest import DimRange, Manifest, Plan
from sana_rt.model_spec import ModelSpec
from sana_rt.runtime.backends.base import Backend, Entry
from sana_rt.runtime.backends.buffers import Buffer, HostArray, to_device_dtype, widen
from sana_rt.runtime.example_inputs import example_inputs
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.tolerances import tolerance
from sana_rt.tensors import TensorSpec, resolve

#: Sizes of graphs that accept any: tokens of a frame, latent frames, and words.
_ROWS, _COLUMNS, _FRAMES, _LENGTH, _BATCH = 4, 5, 3, 7, 2


@dataclass(frozen=True)
class Compared:
    """A graph at one size: its worst output, how far that is from the CPU's, and how far it may be.

    ``error`` is the largest difference as a part of the largest value; NaN counts as infinite.
    """

    variant: str
    graph: str
    reference: str
    dims: Mapping[str, int]
    output: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


def reference_of(manifest: Manifest, name: str) -> str:
    """The variant that the CPU plays to say what another should give.

    That is the emulation of what only TensorRT plays, and float32 for all others.

    Raises:
        VerificationError: the bundle has none of the same checkpoint.
    """
    wanted = manifest.variant(name)
    made = wanted.quantization
    emulated = made is not None and made.form == "device"
    like = msgspec.structs.replace(made, form="emulation") if made and emulated else None
    for other, variant in manifest.variants.items():
        same = variant.quantization == like and variant.source == wanted.source
        if same and variant.dtype == "float32":
            return other
    raise VerificationError(
        f"The variant {name!r} cannot be compared: the CPU has nothing to compare it with.",
        expected="its emulation in the bundle." if emulated else "a float32 variant in the bundle.",
        remedy="export the checkpoint with --dtype fp32, too"
        + (" and quantize again." if emulated else "."),
    )


def compare(
    bundle: Bundle, variant: str, backend: Backend, reference: str, cpu: Backend
) -> Iterator[Compared]:
    """Run every graph of ``variant`` on ``backend`` and the one of ``reference`` on the CPU.

    A plan is run at the size that it is tuned for and at its smallest. Graphs are open one at a
    time; both backends stay open.

    Raises:
        VerificationError: the reference lacks a graph.
    """
    device, host = Graphs(bundle, variant, backend), Graphs(bundle, reference, cpu)
    for name, entry in device.signatures.items():
        if name not in host.signatures:
            raise VerificationError(
                f"The variant {reference!r} has no graph {name!r} to compare with.",
                expected="the graphs of one checkpoint.",
                remedy="export the checkpoint again.",
            )
        for dims in _sizes(name, entry, bundle.manifest.model, device.decoder):
            yield _compared(name, device, host, dims, bundle.manifest)
        for graphs in (device, host):
            graphs.close(name)
            graphs.trim()


def _compared(
    name: str, device: Graphs, host: Graphs, dims: Mapping[str, int], manifest: Manifest
) -> Compared:
    entry, model = device.signature(name), manifest.model
    device.serve({dim: DimRange.fixed(size) for dim, size in dims.items()})
    feeds = example_inputs(host.signature(name), dims, model)
    narrow = {spec.name for spec in entry.inputs if spec.dtype == "bfloat16"}
    feeds = {key: _rounded(feed) if key in narrow else feed for key, feed in feeds.items()}
    wanted, found = (_outputs(graphs, name, feeds, dims) for graphs in (host, device))
    errors = {output: _error(found[output], wanted[output]) for output in wanted}
    worst = max(errors, key=errors.__getitem__)
    variant, reference = manifest.variant(device.variant), manifest.variant(host.variant)
    allowed = tolerance(name, variant, entry, reference, model)
    return Compared(device.variant, name, host.variant, dims, worst, errors[worst], allowed)


def _outputs(
    graphs: Graphs, name: str, feeds: Mapping[str, HostArray], dims: Mapping[str, int]
) -> dict[str, HostArray]:
    """What a graph makes of the same inputs, bfloat16 as float32."""
    entry, memory = graphs.signature(name), graphs.memory

    def allocated(specs: tuple[TensorSpec, ...]) -> dict[str, Buffer]:
        return {spec.name: memory.allocate(spec.dtype, resolve(spec.shape, dims)) for spec in specs}

    inputs, outputs = allocated(entry.inputs), allocated(entry.outputs)
    for key, feed in feeds.items():
        memory.upload(inputs[key], feed)
    graphs.run(graphs.bind(name, inputs, outputs))
    return {key: memory.download(buffer) for key, buffer in outputs.items()}


def _rounded(feed: HostArray) -> HostArray:
    """What a bfloat16 input can hold, so that its rounding is no error of the graph."""
    return widen(to_device_dtype(feed, "bfloat16"))


def _error(found: HostArray, wanted: HostArray) -> float:
    """The largest difference as a part of the largest value; of bytes, as a part of 255.

    Bytes are rounded: one step apart is what any difference before the rounding can give.
    """
    difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    if wanted.dtype == np.uint8:
        return float(max(difference.mean(), difference.max() - 1) / 255)
    largest = np.abs(wanted).max() or 1
    error = float(difference.max() / largest)
    return error if np.isfinite(error) else float("inf")


def _sizes(
    name: str, entry: Entry, model: ModelSpec, decoder: DecodeWindow | None
) -> tuple[dict[str, int], ...]:
    """The named dimensions that a graph is run with."""
    small = _small(name, model) | ({} if decoder is None else {"seen": decoder.seen})
    if not isinstance(entry, Plan):
        return (small,)
    sizes = []
    for end in ("opt", "min"):
        profile = {dim: getattr(span, end) for dim, span in entry.profile.items()}
        frames = geometry.clip_dims(model, profile.get("frames", _FRAMES))
        size = small | _frame_size(profile, model) | frames | profile
        if size not in sizes:
            sizes.append(size)
    return tuple(sizes)


def _small(name: str, model: ModelSpec) -> dict[str, int]:
    stride, (_, high, wide) = model.vae.spatial_stride, model.transformer.patch_size
    named = geometry.size_dims(model, _ROWS * high * stride, _COLUMNS * wide * stride)
    batch = 1 if graph_names.is_single(name) else _BATCH
    clip = geometry.clip_dims(model, _FRAMES)
    return named | clip | {"batch": batch, "length": _LENGTH}


def _frame_size(profile: Mapping[str, int], model: ModelSpec) -> dict[str, int]:
    """All sizes of a frame that follow from the one that a profile has; outputs have others."""
    stride, patch = model.vae.spatial_stride, model.transformer.patch_size[1:]
    pixels = []
    for axis, unit, cut in zip(("height", "width"), ("rows", "columns"), patch, strict=True):
        scales = {axis: 1, f"latent_{axis}": stride, unit: stride * cut}
        pixels += [profile[name] * scale for name, scale in scales.items() if name in profile][:1]
    return geometry.size_dims(model, *pixels) if len(pixels) == len(patch) else {}
