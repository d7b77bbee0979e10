"""How far a backend's output may be from the CPU's, by number format; derived in docs/numerics.md.

Errors are largest differences, as parts of the largest value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from sana_rt import graph_names
from sana_rt.graph_names import Part
from sana_rt.manifest import Graph, Plan, Variant
from sana_rt.model_spec import ModelSpec

#: Unit roundoff: the largest relative error of one rounding.
BFLOAT16_ROUNDING: Final = 2.0**-9
TF32_ROUNDING: Final = 2.0**-11

#: Roundings one after another: of a block (six products, three norms, their gates and residuals),
#: of a layer of the text encoder, of the autoencoder (30 layers of three), of any other graph.
BLOCK_ROUNDINGS: Final = 40
TEXT_LAYER_ROUNDINGS: Final = 12
AUTOENCODER_ROUNDINGS: Final = 90
OTHER_ROUNDINGS: Final = 10
#: Independent roundings add up as the root of their number; the largest of many is no more than
#: three times that.
MARGIN: Final = 3

#: Two independent NVFP4 roundings of a value are 2/48 of its square apart at most, and three
#: layers follow on each other in the longest path through a block.
NVFP4_TOLERANCE: Final = math.sqrt(3 * 2 / 48)

#: Of a float32 graph whose manifest records none: that of the deepest (export/verify.py).
FLOAT32_TOLERANCE: Final = 1e-4


#: In float32 whatever the variant is in.
_FLOAT32: Final = (graph_names.ROPE, graph_names.SOLVER)


def tolerance(
    name: str, variant: Variant, entry: Graph | Plan, reference: Variant, model: ModelSpec
) -> float:
    """The largest error of the graph called ``name``, as ``entry`` of ``variant`` runs it."""
    allowed = _recorded(reference.graphs[name])
    allowed += MARGIN * math.sqrt(_roundings(name, model)) * _rounding(name, variant, entry)
    quantized = variant.quantization is not None and graph_names.is_quantizable(name)
    return allowed + (NVFP4_TOLERANCE if quantized else 0)


def _recorded(graph: Graph) -> float:
    return FLOAT32_TOLERANCE if graph.verification is None else graph.verification.tolerance


def _rounding(name: str, variant: Variant, entry: Graph | Plan) -> float:
    """Of one value, in the arithmetic of the graph; 0 for float32, whose error is recorded."""
    if variant.dtype == "bfloat16" and name not in _FLOAT32:
        return BFLOAT16_ROUNDING
    tf32 = isinstance(entry, Plan) and entry.options.get("tf32") == "true"
    return TF32_ROUNDING if tf32 else 0


def _roundings(name: str, model: ModelSpec) -> int:
    if graph_names.is_block(name):
        return BLOCK_ROUNDINGS
    if name == graph_names.TEXT_ENCODER:
        return TEXT_LAYER_ROUNDINGS * model.text.num_layers
    role = graph_names.role(name)
    counts: Mapping[Part, int] = {"autoencoder": AUTOENCODER_ROUNDINGS}
    return OTHER_ROUNDINGS if role is None else counts.get(role.part, OTHER_ROUNDINGS)
