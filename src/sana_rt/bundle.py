"""A bundle on disk: a directory whose ``manifest.json`` is written last."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sana_rt import manifest as manifests
from sana_rt.errors import BundleFileError, ManifestMissingError, ManifestPathError
from sana_rt.files import read_at_most, sha256, storage_errors, write_bytes
from sana_rt.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, File, Graph, Manifest, Plan


@dataclass(frozen=True)
class Bundle:
    """A directory and its manifest; opening checks names and sizes, not hashes."""

    root: Path
    manifest: Manifest

    @staticmethod
    def read(root: Path) -> Bundle:
        """Read and check the manifest; look at no other file."""
        path = root / MANIFEST_NAME
        with storage_errors(path):
            if not path.is_file():
                raise ManifestMissingError(
                    f"{root} has no {MANIFEST_NAME}.",
                    expected="a bundle; its manifest is written last, so an interrupted one "
                    "has none.",
                    remedy="run the command that writes the bundle (sana-rt export) again.",
                )
            return Bundle(root, manifests.decode(_read_manifest(path)))

    @staticmethod
    def open(root: Path) -> Bundle:
        """Read and check the manifest, and that every listed file has its listed size."""
        bundle = Bundle.read(root)
        with storage_errors(root):
            for file in bundle.manifest.files:
                bundle.check_size(file)
        return bundle

    def path(self, relative: str) -> Path:
        """Where a listed file is."""
        return self.root / self.manifest.file(relative).path

    def graph_paths(self, artifact: Graph | Plan) -> tuple[Path, ...]:
        """The files of a graph or plan, itself first."""
        weights = artifact.weights if isinstance(artifact, Graph) else ()
        return tuple(self.path(relative) for relative in (artifact.path, *weights))

    def check_size(self, file: File) -> None:
        """Raise :class:`BundleFileError` unless ``file`` is there with its listed size.

        A symbolic link that leads out of the bundle raises :class:`ManifestPathError`.
        """
        path = self.root / file.path
        target = os.path.realpath(path)
        if not Path(target).is_relative_to(os.path.realpath(self.root)):
            raise ManifestPathError(
                f"{path} is a link to {target}.",
                expected="a file inside the bundle.",
                remedy="put a copy of the file in the place of the link.",
            )
        if not path.is_file():
            raise BundleFileError(
                f"{path} is missing.", expected=f"{file.bytes:,} bytes.", remedy=_REMEDY
            )
        actual = path.stat().st_size
        if actual != file.bytes:
            raise BundleFileError(
                f"{path} has {actual:,} bytes.", expected=f"{file.bytes:,} bytes.", remedy=_REMEDY
            )

    def check_hash(self, file: File) -> None:
        """Raise :class:`BundleFileError` unless the content of ``file`` is the listed one."""
        self.check_size(file)
        actual = sha256(self.root / file.path)
        if actual != file.sha256:
            raise BundleFileError(
                f"{self.root / file.path} has SHA-256 {actual}.",
                expected=file.sha256,
                remedy=_REMEDY,
            )

    def check_graph(self, graph: Graph) -> None:
        """Raise :class:`BundleFileError` unless a graph's files have their listed content."""
        for path in (graph.path, *graph.weights):
            self.check_hash(self.manifest.file(path))


def _read_manifest(path: Path) -> bytes:
    with path.open("rb") as file:
        return read_at_most(file, MAX_MANIFEST_BYTES + 1)  # one more than allowed, for the error


_REMEDY = "copy the bundle again, or make it again with the command that wrote it."


def describe(root: Path, paths: Iterable[Path]) -> tuple[File, ...]:
    """List files below ``root`` with size and hash, sorted by path."""
    return tuple(
        File(path.relative_to(root).as_posix(), path.stat().st_size, sha256(path))
        for path in sorted(paths)
    )


def save(root: Path, manifest: Manifest) -> Bundle:
    """Write the manifest, after every file it lists is in place."""
    bundle = Bundle(root, manifest)
    for file in manifest.files:
        bundle.check_size(file)
    write_bytes(root / MANIFEST_NAME, manifests.encode(manifest))
    return bundle
