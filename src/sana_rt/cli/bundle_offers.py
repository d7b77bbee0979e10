"""What of a bundle would be played on this machine, by which backend, and why not the rest."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sana_rt.bundle import Bundle
from sana_rt.cli import output


class Playable(msgspec.Struct, frozen=True):
    """A variant on a backend, and why it is not played ("" if it is)."""

    backend: str
    variant: str
    refusal: str


def examine(root: Path) -> tuple[Playable, ...]:
    """Ask every backend; raises :class:`ManifestError` if there is no bundle or a damaged one."""
    from sana_rt.runtime.backends.survey import survey

    return tuple(
        Playable(backend, variant, offers.refusals.get(variant, ""))
        for backend, offers in survey(Bundle.open(root)).items()
        for variant in (*offers.playable, *offers.refusals)
    )


def show(root: Path, found: tuple[Playable, ...]) -> None:
    """Print a line for each variant on each backend."""
    output.table(
        f"What of {root} would be played here",
        ("", "backend", "variant", "why not"),
        [
            ("no" if each.refusal else "yes", each.backend, each.variant, each.refusal)
            for each in found
        ],
    )
