"""Whether a variant is what an export would write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sana_rt import freshness
from sana_rt.bundle import Bundle
from sana_rt.files import sha256
from sana_rt.manifest import Lora, Variant
from sana_rt.model_spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    from sana_rt.export.checkpoint import Checkpoint
    from sana_rt.export.onnx_export import ExportOptions

#: Those that decide what graphs are.
_PACKAGES: Final = ("onnx", "onnxscript", "torch")
#: The reason of a variant that is not there.
NEVER: Final = "never exported"


@dataclass(frozen=True)
class VariantKey:
    """All that decides what an exported variant is; each field is a reason of its own."""

    checkpoint: str = field(metadata={"opaque": True})
    loras: tuple[Lora, ...] = field(metadata={"opaque": True})
    model: ModelSpec = field(metadata={"opaque": True})
    tokenizer: str | None = field(metadata={"opaque": True})
    dtype: str
    compared_with_modules: bool
    maker: str


def maker() -> str:
    """Who exports: recorded in every variant, and part of its key."""
    return freshness.maker("export", _PACKAGES)


def reasons(root: Path, checkpoint: Checkpoint, options: ExportOptions) -> tuple[str, ...]:
    """Why the variant would be written again; none if it is current. Reads all files of both."""
    if not Bundle.exists(root):
        return (NEVER,)
    bundle = Bundle.read(root)
    variant = bundle.manifest.variants.get(options.name(checkpoint.source))
    if variant is None or variant.quantization is not None:
        return (NEVER,)
    return tuple(_differences(bundle, variant, checkpoint, options))


def _differences(
    bundle: Bundle, variant: Variant, checkpoint: Checkpoint, options: ExportOptions
) -> Iterator[str]:
    manifest = bundle.manifest
    tokenizer = manifest.tokenizer
    compared = all(graph.verification for graph in variant.graphs.values())
    there = VariantKey(
        checkpoint=variant.source.base,
        loras=variant.source.loras,
        model=manifest.model,
        tokenizer=None if tokenizer is None else manifest.file(tokenizer).sha256,
        dtype=variant.dtype,
        compared_with_modules=compared,
        maker=variant.maker,
    )
    wanted = VariantKey(
        checkpoint=checkpoint.source.base,
        loras=checkpoint.source.loras,
        model=checkpoint.spec,
        tokenizer=None if checkpoint.tokenizer is None else sha256(checkpoint.tokenizer),
        dtype=options.dtype,
        compared_with_modules=compared or options.verify,
        maker=maker(),
    )
    yield from freshness.differences(there, wanted)
    files = [path for graph in variant.graphs.values() for path in (graph.path, *graph.weights)]
    yield from freshness.damaged(bundle, [*files, *([tokenizer] if tokenizer else [])])
