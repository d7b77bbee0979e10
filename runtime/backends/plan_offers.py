"""Which variants have plans for the card that is here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from sana_rt.errors import MissingDependencyError, SanaRTError
from sana_rt.manifest import Plan, Variant
from sana_rt.runtime.backends.base import Backend, BackendOptions, Candidate, Offers
from sana_rt.runtime.backends.trt_api import Flavour, Library

if TYPE_CHECKING:
    from sana_rt.runtime.backends.cuda_device import Card

#: What plans are for that were built on a machine with the card, whichever that was.
_CURRENT: Final = "current"
_NAMED: Final = 4  # missing graphs that a refusal names


def offers(variants: Mapping[str, Variant]) -> Offers:
    """The variants whose every graph has a plan for the card, those in bfloat16 first.

    The card is looked for only if there are plans.

    Raises:
        BackendError: there is no card or no driver.
        MissingDependencyError: cuda-python is not installed.
    """
    if not any(variant.plans for variant in variants.values()):
        return Offers((), {name: _unbuilt(name) for name in variants})
    card = _card()
    found = {name: refusal(name, variant, card) for name, variant in variants.items()}
    playable = [name for name, reason in found.items() if not reason]
    playable.sort(key=lambda name: variants[name].dtype != "bfloat16")  # stable
    return Offers(tuple(playable), {name: reason for name, reason in found.items() if reason})


def plans(variant: Variant, card: Card) -> Mapping[str, Plan]:
    """The plans of a variant that are for ``card``, by graph; those of the most graphs."""
    kinds = {card.compute_capability, _CURRENT}
    fitting = (
        each
        for each in variant.plans.values()
        if {plan.compute_capability for plan in each.values()} <= kinds
    )
    return max(fitting, key=len, default={})


def refusal(name: str, variant: Variant, card: Card) -> str:
    """Why a variant is not played on ``card``; nothing if it is."""
    if not any(variant.plans.values()):
        return _unbuilt(name)
    found = plans(variant, card)
    if not found:
        return (
            f"its plans are for {', '.join(variant.plans)}, and {card.name} has compute "
            f"capability {card.compute_capability} (sana-rt build BUNDLE --variant {name} --target "
            "CARD)"
        )
    missing = [graph for graph in variant.graphs if graph not in found]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        return (
            f"it has no current plans of {', '.join(missing[:_NAMED])}{more} for {card.name} "
            f"(sana-rt build BUNDLE --variant {name}; --dry-run says why)"
        )
    try:
        for flavour in sorted({plan.flavour for plan in found.values()}):
            _check_version(name, flavour, found)
    except SanaRTError as error:
        return str(error).replace("\n", " ").removesuffix(".")
    return ""


def _check_version(name: str, flavour: Flavour, found: Mapping[str, Plan]) -> None:
    running = Library(flavour).version
    for graph, plan in found.items():
        if plan.flavour == flavour:
            remedy = f"build the plans again: sana-rt build BUNDLE --variant {name}"
            plan.check_version(f"the plan of {graph}", running, remedy)


def _unbuilt(name: str) -> str:
    return f"it has no plans (sana-rt build BUNDLE --variant {name} makes them)"


def _card() -> Card:
    try:
        from sana_rt.runtime.backends import cuda_device  # noqa: PLC0415 (optional)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "cuda-python is not installed.", remedy='pip install "sana-rt[rtx]"'
        ) from error
    return cuda_device.card()


def _open(options: BackendOptions) -> Backend:
    from sana_rt.runtime.backends.tensorrt import TensorRT  # noqa: PLC0415 (optional)

    return TensorRT(options)


CANDIDATE: Final = Candidate(offers, _open)
