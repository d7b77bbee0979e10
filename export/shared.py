"""Graphs that a new variant shares with one that the bundle has: files are not written twice."""

from __future__ import annotations

from collections.abc import Iterator

from sana_rt.bundle import Bundle
from sana_rt.errors import BundleFileError
from sana_rt.export import freshness, tensor_shapes
from sana_rt.export.checkpoint import Checkpoint
from sana_rt.export.graph_definition import DType, GraphDefinition
from sana_rt.export.graphs import definitions
from sana_rt.manifest import Graph, Source, Variant


def graphs(
    bundle: Bundle, checkpoint: Checkpoint, dtype: DType, *, besides: str
) -> dict[str, Graph]:
    """The graphs of ``checkpoint`` that other variants than ``besides`` have already, by name.

    The same code wrote them, in this type and from the same weights, and their files are intact,
    which is read. A LoRA changes graphs of the transformer only.
    """
    others = [each for name, each in bundle.manifest.variants.items() if name != besides]
    made_alike = [each for each in others if _is_made_alike(each, checkpoint.source, dtype)]
    return {
        definition.name: found
        for definition in definitions(checkpoint, dtype)
        if (found := next(_intact(bundle, made_alike, definition, checkpoint), None)) is not None
    }


def _is_made_alike(variant: Variant, source: Source, dtype: DType) -> bool:
    plain = variant.quantization is None and variant.dtype == dtype
    return plain and variant.maker == freshness.maker() and variant.source.base == source.base


def _intact(
    bundle: Bundle, variants: list[Variant], definition: GraphDefinition, checkpoint: Checkpoint
) -> Iterator[Graph]:
    for variant in variants:
        graph = variant.graphs.get(definition.name)
        if graph is not None and _same_weights(variant, definition, checkpoint):
            try:
                bundle.check_graph(graph)
            except BundleFileError:
                continue
            yield graph


def _same_weights(variant: Variant, definition: GraphDefinition, checkpoint: Checkpoint) -> bool:
    """Whether a graph of ``variant``, which is of the same checkpoint, has the same weights."""
    if definition.source != "transformer" or variant.source == checkpoint.source:
        return True
    tensors = tensor_shapes.of_module(definition.build)
    changed = any(definition.prefix + name in checkpoint.changed for name in tensors)
    return not changed and not variant.source.loras
