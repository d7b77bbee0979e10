"""What every backend would play of a bundle on this machine, and why not the rest."""

from __future__ import annotations

from collections.abc import Mapping

from sana_rt.errors import SanaRTError
from sana_rt.manifest import Variant
from sana_rt.runtime.backends import BACKENDS
from sana_rt.runtime.backends.base import DEFAULT_OPTIONS, Offers


def survey(variants: Mapping[str, Variant]) -> dict[str, Offers]:
    """The offers of each backend, which is opened and closed to see whether it works here."""
    return {name: offers(name, variants) for name in BACKENDS}


def offers(name: str, variants: Mapping[str, Variant]) -> Offers:
    """What the backend called ``name`` plays here; where it does not work, nothing."""
    try:
        candidate = BACKENDS[name]()
        found = candidate.offers(variants)
        if found.playable:
            candidate.open(DEFAULT_OPTIONS).close()
    except SanaRTError as error:
        return _nothing(variants, str(error).replace("\n", " ").removesuffix("."))
    except ModuleNotFoundError as error:
        return _nothing(variants, f"the package {error.name!r} is not installed")
    return found


def _nothing(variants: Mapping[str, Variant], reason: str) -> Offers:
    return Offers((), dict.fromkeys(variants, reason))
