"""Backends by name, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from sana_rt.errors import BackendError, SanaRTError, UsageError
from sana_rt.manifest import Variant
from sana_rt.runtime.backends.base import Backend

AUTO: Final = "auto"


def _cpu(threads: int | None) -> Backend:
    from sana_rt.runtime.backends import onnxruntime  # noqa: PLC0415 (an optional dependency)

    return onnxruntime.cpu(threads)


def _cuda(threads: int | None) -> Backend:
    from sana_rt.runtime.backends import onnxruntime  # noqa: PLC0415 (an optional dependency)

    return onnxruntime.cuda(threads)


#: What opens a backend, by name; `auto` tries them in this order.
BACKENDS: Final[Mapping[str, Callable[[int | None], Backend]]] = {
    "onnxruntime-cuda": _cuda,
    "onnxruntime": _cpu,
}


def select(
    backend: str, variants: Mapping[str, Variant], variant: str | None, threads: int | None = None
) -> tuple[Backend, str]:
    """The first backend that can play the bundle, and the name of the variant it plays.

    Without ``variant`` a backend takes the first of the manifest in the dtype it prefers:
    ``float32`` on a CPU, ``bfloat16`` before ``float32`` on a GPU. A quantized variant is played
    only when it is asked for.

    Raises:
        BackendError: none can; every refusal is listed with its reason.
    """
    refusals = {}
    for name in _candidates(backend):
        try:
            opened = BACKENDS[name](threads)
            return opened, _variant(opened, variants, variant)
        except SanaRTError as error:
            refusals[name] = str(error).replace("\n", " ")
        except ModuleNotFoundError as error:
            refusals[name] = f"the package {error.name!r} is not installed."
    raise BackendError(
        "No backend can play this bundle here:\n"
        + "\n".join(f"  {name}: {reason}" for name, reason in refusals.items()),
        remedy="`sana-rt doctor` says what to install.",
    )


def _candidates(backend: str) -> tuple[str, ...]:
    if backend == AUTO:
        return tuple(BACKENDS)
    if backend not in BACKENDS:
        raise UsageError(
            f"There is no backend {backend!r}.", expected=f"{AUTO} or one of {list(BACKENDS)}."
        )
    return (backend,)


def _variant(backend: Backend, variants: Mapping[str, Variant], wanted: str | None) -> str:
    plain = [name for name, variant in variants.items() if variant.recipe is None]
    names = plain if wanted is None else [wanted]
    for dtype in backend.dtypes:
        for name in names:
            if variants[name].dtype == dtype:
                return name
    there = {name: variants[name].dtype for name in (variants if wanted is None else names)}
    raise BackendError(
        f"it plays {' and '.join(backend.dtypes)} only, quantized variants only if asked for, "
        f"and the bundle has {there}."
    )
