"""Changing a bundle so that it is whole at every moment.

New files come first, under names that the manifest does not list; then the manifest, which is
replaced in one step; then the files that nothing refers to any more leave. Whoever is stopped in
between leaves the old bundle or the new one, and files that the next run removes.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from sana_rt import weights_file
from sana_rt.bundle import Bundle, describe, save
from sana_rt.errors import UsageError
from sana_rt.files import PARTIAL_SUFFIX, lock, storage_errors
from sana_rt.manifest import MANIFEST_NAME, Manifest, Plan, Variant

_SUFFIXES: Final = (".onnx", weights_file.SUFFIX, PARTIAL_SUFFIX)


@contextmanager
def new_folder(root: Path, name: str, manifest: Manifest | None) -> Iterator[Path]:
    """A folder for the files of the variant called ``name``, which the block publishes.

    It goes again if the block fails, unless the manifest was replaced before it did. A variant
    that is replaced keeps its files until the manifest names the new ones, so these need another
    folder: ``fp32``, then ``fp32.1``, then ``fp32`` again. What an interruption left is removed
    first.
    """
    _clean(root, name, manifest)
    folders = (root / (f"{name}.{count}" if count else name) for count in itertools.count())
    folder = next(each for each in folders if not each.exists())
    before = _manifest_identity(root)
    try:
        yield folder
    except BaseException:
        if _manifest_identity(root) == before:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(root: Path, before: Manifest | None, after: Manifest) -> Bundle:
    """Make ``after`` the manifest, and remove the files that only ``before`` refers to.

    ``after`` lists what ``before`` does; files that it refers to and ``before`` does not are added.
    They have to be complete, and go again if the manifest cannot be replaced.
    """
    known = before.paths() if before else set()
    fresh, dropped = after.paths() - known, known - after.paths()
    with _withdrawn(root, fresh):
        files = [file for file in after.files if file.path not in fresh | dropped]
        with storage_errors(root):
            files += describe(root, [root / path for path in fresh])
        files.sort(key=lambda file: file.path)
        bundle = save(root, msgspec.structs.replace(after, files=tuple(files)))
    for path in sorted(dropped):
        _remove(root, root / path)
    return bundle


@contextmanager
def _withdrawn(root: Path, fresh: set[str]) -> Iterator[None]:
    """Remove files if the block fails, unless the manifest was replaced before it did."""
    before = _manifest_identity(root)
    try:
        yield
    except BaseException:
        if _manifest_identity(root) == before:
            for path in sorted(fresh):
                _remove(root, root / path)
        raise


def _manifest_identity(root: Path) -> tuple[int, int] | None:
    """Another one for every manifest that takes the name; nothing is read, which could fail."""
    try:
        status = (root / MANIFEST_NAME).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def remove_variant(root: Path, name: str) -> Bundle:
    """Take a variant and its plans out of a bundle; files that others share stay.

    Raises:
        UsageError: it is the only one.
        ManifestReferenceError: there is none of that name.
        LockedError: another process is writing the bundle.
    """
    with lock(root):
        before = Bundle.read(root).manifest
        before.variant(name)
        rest = {each: variant for each, variant in before.variants.items() if each != name}
        if not rest:
            raise UsageError(
                f"{name!r} is the only variant of {root}.",
                expected="a bundle that keeps at least one.",
                remedy="remove the directory to remove all of it.",
            )
        return publish(root, before, msgspec.structs.replace(before, variants=rest))


def remove_plans(root: Path, variant: str | None, target: str | None) -> Bundle:
    """Take plans out of a bundle: those of a variant or of all, for a target or for all.

    Raises what :func:`remove_variant` does, and :class:`UsageError` if there are no such plans.
    """
    with lock(root):
        before = Bundle.read(root).manifest
        names = list(before.variants) if variant is None else [variant]
        changed = {
            name: msgspec.structs.replace(found, plans=_other_targets(found, target))
            for name in names
            if (found := before.variant(name)).plans
        }
        after = msgspec.structs.replace(before, variants={**before.variants, **changed})
        if after == before:
            raise UsageError(
                f"{root} has no such plans.", expected=f"plans of {_plans(before) or 'nothing'}."
            )
        return publish(root, before, after)


def _other_targets(variant: Variant, target: str | None) -> dict[str, dict[str, Plan]]:
    return {each: plans for each, plans in variant.plans.items() if target not in {None, each}}


def _plans(manifest: Manifest) -> str:
    found = manifest.variants.items()
    return ", ".join(f"{name} for {target}" for name, each in found for target in each.plans)


def _clean(root: Path, name: str, manifest: Manifest | None) -> None:
    """Remove the variant's files that the manifest does not list."""
    listed = {root / file.path for file in manifest.files} if manifest else set()
    own = re.compile(re.escape(name) + r"(\.\d+)?")
    with storage_errors(root):
        folders = [path for path in root.iterdir() if own.fullmatch(path.name) and path.is_dir()]
    for folder in folders:
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                _remove_if_empty(path)
            elif path not in listed and path.name.endswith(_SUFFIXES):
                _remove(root, path)
        _remove_if_empty(folder)


def _remove(root: Path, path: Path) -> None:
    """Remove a file, and the folders that it leaves empty."""
    with storage_errors(path):
        path.unlink(missing_ok=True)
        for folder in itertools.takewhile(lambda parent: parent != root, path.parents):
            _remove_if_empty(folder)


def _remove_if_empty(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
