"""Cards: what each kind multiplies in, what TensorRT-RTX calls it, and published limits.

The facts are in ``cards.toml``.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec

from sana_rt.errors import UsageError
from sana_rt.model_spec import Frozen, Positive


class Target(Frozen, frozen=True):
    """A kind of card that plans are built for."""

    name: str
    compute_capability: str
    dtypes: tuple[str, ...]  # of the operands of GEMMs
    card: str | None = None  # the one whose limits bound its plans unless another is asked for

    @property
    def member(self) -> str:
        """Its name in TensorRT-RTX's ``ComputeCapability``."""
        return self.name.upper()


class Source(Frozen, frozen=True):
    """The public document that a card's numbers are from."""

    document: str
    url: str


class Card(Frozen, frozen=True):
    """A card's published limits; ``peaks`` are dense FLOP/s by dtype of the GEMM's operands."""

    name: str
    driver_names: tuple[str, ...]  # what the driver calls a card that has these limits
    compute_capability: str
    memory_bytes: int
    bandwidth: Positive  # bytes a second
    peaks: dict[str, Positive]
    source: Source


class _Table(Frozen, frozen=True):
    targets: tuple[Target, ...]
    cards: dict[str, Card]


_TABLE: Final = msgspec.convert(
    tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")), _Table
)
TARGETS: Final = {target.name: target for target in _TABLE.targets}
CARDS: Final = _TABLE.cards

#: The target that is the card in this machine, and no other.
CURRENT: Final = "current"


def card(name: str) -> Card:
    """The card called ``name``, such as ``rtx5090``; :class:`UsageError` if there is none."""
    if name not in CARDS:
        raise UsageError(f"There is no card {name!r}.", expected=f"one of {', '.join(CARDS)}.")
    return CARDS[name]


def card_of(target: str) -> Card:
    """The card whose limits stand for ``target``; :class:`UsageError` if none does."""
    name = TARGETS[target].card if target in TARGETS else None
    if name is None:
        raise UsageError(
            f"The target {target!r} does not say which card it is.",
            expected=f"--device with one of {', '.join(CARDS)}.",
        )
    return CARDS[name]


def target_of(compute_capability: str) -> Target | None:
    """The target for cards of a compute capability such as ``12.0``; None if there is none."""
    return next(
        (one for one in TARGETS.values() if one.compute_capability == compute_capability), None
    )
