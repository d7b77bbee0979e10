"""Backends by name, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from sana_rt.errors import BackendError, SanaRTError, UsageError
from sana_rt.manifest import Variant
from sana_rt.runtime.backends.base import (
    DEFAULT_OPTIONS,
    Backend,
    BackendOptions,
    Candidate,
    Offers,
)

AUTO: Final = "auto"


def _tensorrt() -> Candidate:
    from sana_rt.runtime.backends import plan_offers  # noqa: PLC0415 (needs nothing optional yet)

    return plan_offers.CANDIDATE


def _cpu() -> Candidate:
    from sana_rt.runtime.backends import onnxruntime  # noqa: PLC0415 (an optional dependency)

    return onnxruntime.CPU_CANDIDATE


def _cuda() -> Candidate:
    from sana_rt.runtime.backends import onnxruntime  # noqa: PLC0415 (an optional dependency)

    return onnxruntime.CUDA_CANDIDATE


def _rtx() -> Candidate:
    from sana_rt.runtime.backends import onnxruntime_rtx  # noqa: PLC0415 (an optional dependency)

    return onnxruntime_rtx.CANDIDATE


#: The backends by name; `auto` tries them in this order.
BACKENDS: Final[Mapping[str, Callable[[], Candidate]]] = {
    "tensorrt": _tensorrt,
    "onnxruntime-cuda": _cuda,
    "onnxruntime-rtx": _rtx,
    "onnxruntime": _cpu,
}


def select(
    backend: str,
    variants: Mapping[str, Variant],
    variant: str | None,
    options: BackendOptions = DEFAULT_OPTIONS,
) -> tuple[Backend, str]:
    """The first backend that can play the bundle, opened, and the name of the variant it plays.

    ``auto`` prefers plans for the card, where there are any. Without ``variant`` it is the first
    one that the backend prefers: on a CPU in ``float32``, on a GPU in ``bfloat16`` before
    ``float32``; one with LoRAs only where there is none without. A quantized variant is played
    only when it is asked for.

    Raises:
        BackendError: none can; every refusal is listed with its reason.
    """
    refusals: dict[str, str] = {}
    for name in _names(backend):
        try:
            candidate = BACKENDS[name]()
            offers = candidate.offers(variants)
            played = _played(offers, variants, variant)
            if played is not None:
                return candidate.open(options), played
            refusals[name] = _reasons(offers, variants, variant)
        except SanaRTError as error:
            refusals[name] = str(error).replace("\n", " ")
        except ModuleNotFoundError as error:
            refusals[name] = f"the package {error.name!r} is not installed."
    what = "this bundle" if variant is None else f"the variant {variant!r}"
    raise BackendError(
        f"No backend can play {what} here:\n"
        + "\n".join(f"  {name}: {reason}" for name, reason in refusals.items()),
        remedy=_remedy(variants, variant),
    )


def _names(backend: str) -> tuple[str, ...]:
    if backend == AUTO:
        return tuple(BACKENDS)
    if backend not in BACKENDS:
        raise UsageError(
            f"There is no backend {backend!r}.", expected=f"{AUTO} or one of {list(BACKENDS)}."
        )
    return (backend,)


def _played(offers: Offers, variants: Mapping[str, Variant], wanted: str | None) -> str | None:
    if wanted is not None:
        return wanted if wanted in offers.playable else None
    plain = [name for name in offers.playable if variants[name].quantization is None]
    return min(plain, key=lambda name: bool(variants[name].source.loras), default=None)


def _reasons(offers: Offers, variants: Mapping[str, Variant], wanted: str | None) -> str:
    """Why none of the variants that may be played is."""
    if wanted is not None:
        return f"{offers.refusals[wanted]}."
    quantized = "it is quantized, which is played only if asked for"
    reasons = (f"{name!r}: {offers.refusals.get(name, quantized)}" for name in variants)
    return "; ".join(reasons) + "."


def _remedy(variants: Mapping[str, Variant], wanted: str | None) -> str:
    """The emulation of a variant that is for TensorRT, if the bundle has it."""
    made = None if wanted is None else variants[wanted].quantization
    if wanted is not None and made is not None and made.form == "device":
        emulation = msgspec.structs.replace(made, form="emulation"), variants[wanted].source
        for name, variant in variants.items():
            if (variant.quantization, variant.source) == emulation:
                return f"play {name!r} (--variant): it rounds as {wanted!r} does, in float32."
    return "`sana-rt doctor` says what to install."
