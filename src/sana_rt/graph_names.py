"""The graphs that a bundle can have: their names, and what of them follows from the name.

docs/architecture.md says what each computes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Part = Literal["text", "transformer", "autoencoder"]

TEXT_ENCODER: Final = "text_encoder"
PROMPT: Final = "prompt"
ROPE: Final = "rope"
TIMESTEP: Final = "timestep"
PATCH_EMBED: Final = "patch_embed"
FINAL_LAYER: Final = "final_layer"
SOLVER: Final = "solver"
DECODER_FIRST: Final = "vae_decoder_first"
DECODER: Final = "vae_decoder"
DECODER_WHOLE: Final = "vae_decoder_whole"
ENCODER: Final = "vae_encoder"


@dataclass(frozen=True)
class Role:
    """What a graph is for.

    ``single`` graphs see one sample, the others both halves of classifier-free guidance.
    ``quantizable`` ones have matrix products that recipes name.
    """

    part: Part
    single: bool = False
    quantizable: bool = False


_BLOCK: Final = Role("transformer", quantizable=True)
_ROLES: Final[dict[str, Role]] = {
    TEXT_ENCODER: Role("text", single=True),
    PROMPT: Role("text", quantizable=True),
    ROPE: Role("transformer"),
    TIMESTEP: Role("transformer", quantizable=True),
    PATCH_EMBED: Role("transformer", quantizable=True),
    FINAL_LAYER: Role("transformer", quantizable=True),
    SOLVER: Role("transformer", single=True),
    DECODER_FIRST: Role("autoencoder", single=True),
    DECODER: Role("autoencoder", single=True),
    DECODER_WHOLE: Role("autoencoder", single=True),
    ENCODER: Role("autoencoder", single=True),
}
_BLOCK_NAME: Final = re.compile(r"block_(\d{2,})")


def block(index: int) -> str:
    """The graph of a transformer block, from 0."""
    return f"block_{index:02d}"


def blocks(count: int) -> tuple[str, ...]:
    """The graphs of all blocks, in the order in which they run."""
    return tuple(block(index) for index in range(count))


def block_index(name: str) -> int | None:
    """Which block a graph is, or None for another graph."""
    found = _BLOCK_NAME.fullmatch(name)
    return int(found[1]) if found else None


def is_block(name: str) -> bool:
    """Whether a graph is a transformer block."""
    return block_index(name) is not None


def transformer(num_layers: int) -> tuple[str, ...]:
    """The graphs that every clip runs: from the prompt's keys and values to the solver."""
    return (PROMPT, ROPE, TIMESTEP, PATCH_EMBED, *blocks(num_layers), FINAL_LAYER, SOLVER)


def role(name: str) -> Role | None:
    """What a graph is for; None for a graph that this release does not know."""
    return _BLOCK if is_block(name) else _ROLES.get(name)


def is_single(name: str) -> bool:
    """Whether a graph sees one sample only, whatever the guidance."""
    found = role(name)
    return found is not None and found.single


def is_quantizable(name: str) -> bool:
    """Whether a graph has layers that recipes name."""
    found = role(name)
    return found is not None and found.quantizable
