"""What is current: what would make it again is what it was made of and by."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import sana_rt
from sana_rt.bundle import Bundle
from sana_rt.errors import BundleFileError

_PACKAGE: Final = Path(sana_rt.__file__).parent
_DIGITS: Final = 12  # of a hash, as people compare them


def maker(stage: str, packages: Iterable[str]) -> str:
    """Who makes files in a stage: this release, the hash of its code, versions of packages.

    The code is that of the foundation and of the stage's folder, so that a change of either
    makes what it wrote stale; so does another version of one of the ``packages``.
    """
    digest = hashlib.sha256()
    for path in sorted([*_PACKAGE.glob("*.py"), *(_PACKAGE / stage).rglob("*.py")]):
        digest.update(path.read_bytes())
    code = digest.hexdigest()[:_DIGITS]
    versions = (f"{name} {importlib.metadata.version(name)}" for name in packages)
    return ", ".join((f"sana-rt {sana_rt.__version__} ({stage} {code})", *versions))


def differences(old: Any, new: Any) -> Iterator[str]:
    """What of two keys, dataclasses of one class, is not the same: in words, with both values.

    A value whose field is marked ``metadata={"opaque": True}`` tells a person nothing, such as
    the hash of a file.
    """
    for part in fields(new):
        before, after = getattr(old, part.name), getattr(new, part.name)
        name = part.name.replace("_", " ")
        if before == after:
            continue
        if isinstance(after, Mapping):
            yield from _entries(name, before, after)
        elif part.metadata.get("opaque"):
            yield f"the {name} changed"
        else:
            yield f"{name} was {'not recorded' if before == '' else before}, is {after}"


def damaged(bundle: Bundle, paths: Iterable[str]) -> Iterator[str]:
    """Which listed files are not what the manifest says; all of them are read."""
    for path in dict.fromkeys(paths):
        try:
            bundle.check_hash(bundle.manifest.file(path))
        except BundleFileError as error:
            yield f"damaged: {error.happened}"


def _entries(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(set(before) | set(after)):
        if before.get(name) != after.get(name):
            yield f"{what}: {name} was {before.get(name)}, is {after.get(name)}"
