"""What every backend would play of a bundle on this machine, and why not the rest."""

from __future__ import annotations

from sana_rt.bundle import Bundle
from sana_rt.errors import SanaRTError
from sana_rt.runtime.backends import BACKENDS
from sana_rt.runtime.backends.base import DEFAULT_OPTIONS, Artifact, Backend, Offers


def survey(bundle: Bundle) -> dict[str, Offers]:
    """The offers of each backend; see :func:`offers`."""
    return {name: offers(name, bundle) for name in BACKENDS}


def offers(name: str, bundle: Bundle) -> Offers:
    """What the backend called ``name`` plays here; where it does not work, nothing.

    It is opened, and looks at the beginnings of the files; nothing is loaded.
    """
    variants = bundle.manifest.with_current_plans()
    try:
        candidate = BACKENDS[name]()
        found = candidate.offers(variants)
        if not found.playable:
            return found
        backend = candidate.open(DEFAULT_OPTIONS)
    except (SanaRTError, ModuleNotFoundError) as error:
        return Offers((), dict.fromkeys(variants, _reason(error)))
    try:
        refused = {each: _refusal(bundle, backend, each) for each in found.playable}
    finally:
        backend.close()
    refusals = {each: reason for each, reason in refused.items() if reason}
    playable = tuple(each for each in found.playable if each not in refusals)
    return Offers(playable, {**found.refusals, **refusals})


def _refusal(bundle: Bundle, backend: Backend, variant: str) -> str:
    """Why one of the files of a variant would not be opened; nothing if all would."""
    entries = backend.artifacts(bundle.manifest.with_current_plans()[variant])
    try:
        for name, entry in entries.items():
            file = bundle.manifest.file(entry.path)
            path = bundle.path(entry.path)
            backend.check(Artifact(name, entry, path, file.sha256, variant))
    except SanaRTError as error:
        return _reason(error)
    return ""


def _reason(error: SanaRTError | ModuleNotFoundError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name!r} is not installed"
    return str(error).replace("\n", " ").removesuffix(".")
