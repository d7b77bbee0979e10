"""A bundle on disk: a directory whose ``manifest.json`` is written last."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sana_rt import manifest as manifests
from sana_rt import onnx_file
from sana_rt.errors import BundleFileError, ManifestMissingError, ManifestPathError
from sana_rt.files import read_at_most, sha256, storage_errors, write_bytes
from sana_rt.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, File, Graph, Manifest, Plan
from sana_rt.onnx_file import DamagedOnnxError, Outside
from sana_rt.tensors import first_difference


@dataclass(frozen=True)
class Bundle:
    """A directory and its manifest; opening checks names and sizes, not hashes."""

    root: Path
    manifest: Manifest

    @staticmethod
    def exists(root: Path) -> bool:
        """Whether there is a manifest, be it valid or not."""
        with storage_errors(root):
            return (root / MANIFEST_NAME).is_file()

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
        """Check the hashes of a graph's files, then what :meth:`check_onnx` does.

        Whoever makes something of a graph calls this first. Raises :class:`BundleFileError`.
        """
        for path in (graph.path, *graph.weights):
            self.check_hash(self.manifest.file(path))
        self.check_onnx(graph)

    def check_onnx(self, graph: Graph) -> None:
        """Raise :class:`BundleFileError` unless the ONNX file is what the manifest says of it.

        Whoever opens a graph calls this first: its weights lie in the files listed for it, and
        its opset, inputs and outputs are those listed. The weights are not read.
        """
        path = self.path(graph.path)
        try:
            found = onnx_file.read(path)
        except DamagedOnnxError as error:
            raise BundleFileError(
                f"{path} is not an ONNX graph: {error}.", remedy=_REMEDY
            ) from error
        self._check_outside(graph, found.outside)
        if found.opset != graph.opset:
            raise BundleFileError(
                f"{path} has opset {found.opset}.",
                expected=f"{graph.opset}, as the manifest says.",
                remedy=_REMEDY,
            )
        for side in ("inputs", "outputs"):
            difference = first_difference(getattr(found, side), getattr(graph, side))
            if difference is not None:
                index, there, expected = difference
                raise BundleFileError(
                    f"{path} has {there} as {side}[{index}].",
                    expected=f"{expected}, as the manifest says.",
                    remedy=_REMEDY,
                )

    def _check_outside(self, graph: Graph, tensors: Iterable[Outside]) -> None:
        """Every tensor outside of the graph's file lies in one that is listed for it."""
        folder = PurePosixPath(graph.path).parent
        sizes = {
            str(PurePosixPath(path).relative_to(folder)): self.manifest.file(path).bytes
            for path in graph.weights
            if folder in PurePosixPath(path).parents
        }
        for location, offset, length in tensors:
            if location not in sizes:
                raise BundleFileError(
                    f"{self.path(graph.path)} keeps weights in {location!r}.",
                    expected=f"a file that the manifest lists for it: {sorted(sizes)}.",
                    remedy="do not use this bundle: no command of sana-rt writes such a graph.",
                )
            if offset + length > sizes[location]:
                raise BundleFileError(
                    f"{self.path(graph.path)} reads {location!r} up to byte {offset + length:,}.",
                    expected=f"at most {sizes[location]:,}, its size.",
                    remedy=_REMEDY,
                )


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
