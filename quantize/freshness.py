"""Whether a quantized variant is what its recipe would make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from sana_rt import freshness
from sana_rt.bundle import Bundle
from sana_rt.manifest import Variant

#: Those that decide what scales and graphs are.
_PACKAGES: Final = ("nvidia-modelopt", "numpy", "onnx", "onnxruntime")


@dataclass(frozen=True)
class VariantKey:
    """All that decides what a quantized variant is; each field is a reason of its own."""

    checkpoint: str = field(metadata={"opaque": True})
    recipe: str = field(metadata={"opaque": True})
    calibration: Mapping[str, object]
    maker: str


def maker(base: Variant) -> str:
    """Who quantizes what ``base`` was made by: recorded in every variant, and part of its key."""
    return f"{freshness.maker('quantize', _PACKAGES)}; of {base.maker}"


def reasons(
    bundle: Bundle, name: str, base: str, recipe: str, calibration: Mapping[str, object]
) -> tuple[str, ...]:
    """Why the variant would be made of ``base`` again; none if it is current.

    ``recipe`` is the hash of the recipe; ``calibration`` are the fields of the manifest's that
    are known in advance. All files of the variant are read.
    """
    if name not in bundle.manifest.variants:
        return ("never made",)
    source = bundle.manifest.variant(base)
    wanted = VariantKey(source.source.sha256, recipe, calibration, maker(source))
    return tuple(_differences(bundle, bundle.manifest.variant(name), wanted))


def _differences(bundle: Bundle, variant: Variant, wanted: VariantKey) -> Iterator[str]:
    there = VariantKey(
        checkpoint=variant.source.sha256,
        recipe=variant.quantization.recipe_sha256 if variant.quantization else "",
        calibration=_recorded(variant, wanted.calibration),
        maker=variant.maker,
    )
    yield from freshness.differences(there, wanted)
    files = [path for graph in variant.graphs.values() for path in (graph.path, *graph.weights)]
    yield from freshness.damaged(bundle, files)


def _recorded(variant: Variant, wanted: Mapping[str, object]) -> Mapping[str, object]:
    """The variant's calibration, as far as it is asked for; all of it where none is."""
    found = variant.quantization and variant.quantization.calibration
    if found is None:
        return {}
    recorded = msgspec.structs.asdict(found)
    return {name: recorded[name] for name in wanted} if wanted else recorded
