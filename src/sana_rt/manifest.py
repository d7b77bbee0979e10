"""The bundle's ``manifest.json``: what the files of a bundle are and how they fit together.

The format is specified in ``docs/manifest.md``; these types generate its JSON Schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import msgspec

from sana_rt.errors import (
    ManifestFieldError,
    ManifestLimitError,
    ManifestPathError,
    ManifestReferenceError,
    ManifestSyntaxError,
    ManifestVersionError,
)
from sana_rt.model_spec import Frozen, ModelSpec
from sana_rt.tensors import TensorSpec

MANIFEST_NAME: Final = "manifest.json"
FORMAT: Final = "sana-rt-bundle"
FORMAT_VERSION: Final = 1
MAX_MANIFEST_BYTES: Final = 16 << 20
MAX_FILES: Final = 65_536
MAX_PATH_CHARS: Final = 255

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class File(Frozen, frozen=True):
    """A file of the bundle; ``path`` is relative, with ``/``, in normal form."""

    path: str
    bytes: int
    sha256: str


class Verification(Frozen, frozen=True):
    """What ``sana-rt verify`` measured: a graph's outputs against its module's.

    ``max_error`` is the largest absolute difference divided by the largest absolute value
    of the module's output, the worst over all outputs and all sizes tried.
    """

    max_error: float
    tolerance: float
    reference: str
    dims: tuple[dict[str, int], ...]


class Graph(Frozen, frozen=True):
    """An ONNX graph, its weight files, and its signature."""

    path: str
    weights: tuple[str, ...]
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    verification: Verification | None = None


class DimRange(Frozen, frozen=True):
    """The values of a named dimension that a plan accepts, and the one it is tuned for."""

    min: int
    opt: int
    max: int


class Plan(Frozen, frozen=True):
    """A compiled TensorRT(-RTX) engine of one graph for one target."""

    path: str
    flavour: Literal["rtx", "trt"]
    flavour_version: str
    compute_capability: str
    profile: dict[str, DimRange]
    built_from: str
    options: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    activation_bytes: int
    weight_bytes: int
    user_allocation: bool


class Variant(Frozen, frozen=True):
    """One numerical version of the model: graph by graph name, plans by target, then name."""

    dtype: str
    description: str
    graphs: dict[str, Graph]
    plans: dict[str, dict[str, Plan]] = msgspec.field(default_factory=dict)
    recipe: str | None = None


class Source(Frozen, frozen=True):
    """Where the weights came from."""

    checkpoint: str
    layout: str
    sha256: str


class Manifest(Frozen, frozen=True):
    """The whole of ``manifest.json``."""

    format: str
    format_version: int
    created_by: str
    model: ModelSpec
    source: Source
    files: tuple[File, ...]
    variants: dict[str, Variant]
    tokenizer: str | None = None

    def file(self, path: str) -> File:
        """The listed file at ``path``."""
        for file in self.files:
            if file.path == path:
                return file
        raise ManifestReferenceError(
            f"The manifest refers to {path!r}.", expected="a path that its files list."
        )

    def variant(self, name: str) -> Variant:
        """The variant called ``name``."""
        if name not in self.variants:
            raise ManifestReferenceError(
                f"The bundle has no variant {name!r}.",
                expected=f"one of {sorted(self.variants)}.",
            )
        return self.variants[name]


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented UTF-8 JSON, after checking it."""
    check(manifest)
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes) -> Manifest:
    """Parse and check a manifest; every violation raises its own :class:`ManifestError`."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestLimitError(
            f"The manifest is {len(data):,} bytes.", expected=f"at most {MAX_MANIFEST_BYTES:,}."
        )
    raw = _parse(data)
    _check_version(raw)
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        kind = ManifestFieldError if " field " in str(error) else ManifestSyntaxError
        raise kind(f"The manifest is not valid: {error}.") from error
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Raise the named error of the first rule that the manifest breaks."""
    _check_files(manifest.files)
    listed = {file.path for file in manifest.files}
    for where, path in _references(manifest):
        if path not in listed:
            raise ManifestReferenceError(
                f"{where} refers to {path!r}.", expected="a path that the manifest's files list."
            )
    if not manifest.variants:
        raise ManifestReferenceError("The manifest lists no variant.", expected="at least one.")
    for variant_name, variant in manifest.variants.items():
        _check_name(variant_name, "variant")
        for where, tensors in _signatures(variant_name, variant):
            for tensor in tensors:
                tensor.check(where)
            names = [tensor.name for tensor in tensors]
            if len(names) != len(set(names)):
                raise ManifestReferenceError(f"{where} lists a tensor twice: {names}.")


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the manifest."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **msgspec.json.schema(Manifest),
    }


def _parse(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ManifestSyntaxError(f"The manifest is not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise ManifestSyntaxError(
            f"The manifest is a JSON {type(raw).__name__}.", expected="an object."
        )
    return raw


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ManifestSyntaxError(f"The manifest has duplicate keys: {twice}.")
    return dict(pairs)


def _no_constant(text: str) -> float:
    raise ManifestSyntaxError(f"The manifest contains {text}.", expected="finite numbers.")


def _check_version(raw: Mapping[str, Any]) -> None:
    if raw.get("format") != FORMAT:
        raise ManifestVersionError(
            f"The manifest's format is {raw.get('format')!r}.", expected=f"{FORMAT!r}."
        )
    version = raw.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ManifestVersionError(
            f"The manifest's format_version is {version!r}.",
            expected=f"{FORMAT_VERSION}, the one this release reads.",
            remedy="use the sana-rt release that wrote the bundle, or export it again.",
        )


def _check_files(files: tuple[File, ...]) -> None:
    if len(files) > MAX_FILES:
        raise ManifestLimitError(
            f"The manifest lists {len(files):,} files.", expected=f"at most {MAX_FILES:,}."
        )
    seen: set[str] = set()
    for file in files:
        check_path(file.path)
        if file.path in seen:
            raise ManifestReferenceError(f"The manifest lists {file.path!r} twice.")
        seen.add(file.path)
        if file.bytes < 0:
            raise ManifestLimitError(
                f"{file.path!r} has {file.bytes} bytes.", expected="0 or more."
            )
        if not _SHA256.fullmatch(file.sha256):
            raise ManifestSyntaxError(
                f"{file.path!r} has sha256 {file.sha256!r}.", expected="64 lower-case hex digits."
            )


def check_path(path: str) -> None:
    """Raise :class:`ManifestPathError` unless ``path`` stays inside the bundle, in normal form."""
    normal = PurePosixPath(path).as_posix()
    unsafe = (
        not path
        or len(path) > MAX_PATH_CHARS
        or path != normal
        or path.startswith("/")
        or ".." in PurePosixPath(path).parts
        or path in (".", MANIFEST_NAME)
        or any(character in path for character in '\\:\0"*?<>|')
        or any(ord(character) < 32 for character in path)
    )
    if unsafe:
        raise ManifestPathError(
            f"The manifest lists the path {path!r}.",
            expected="a relative path inside the bundle, with '/', without '..'.",
        )


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ManifestSyntaxError(
            f"The manifest names a {what} {name!r}.",
            expected="lower-case letters, digits, '.', '_' and '-'.",
        )


def _references(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if manifest.tokenizer is not None:
        yield "tokenizer", manifest.tokenizer
    for variant_name, variant in manifest.variants.items():
        for graph_name, graph in variant.graphs.items():
            for path in (graph.path, *graph.weights):
                yield f"{variant_name}/{graph_name}", path
        for target, plans in variant.plans.items():
            for graph_name, plan in plans.items():
                yield f"{variant_name}/{graph_name} ({target})", plan.path
                if graph_name not in variant.graphs:
                    raise ManifestReferenceError(
                        f"{variant_name!r} has a plan of {graph_name!r}.",
                        expected=f"one of its graphs: {sorted(variant.graphs)}.",
                    )


def _signatures(name: str, variant: Variant) -> Iterator[tuple[str, tuple[TensorSpec, ...]]]:
    for graph_name, graph in variant.graphs.items():
        _check_name(graph_name, "graph")
        yield f"{name}/{graph_name} inputs", graph.inputs
        yield f"{name}/{graph_name} outputs", graph.outputs
    for target, plans in variant.plans.items():
        _check_name(target, "target")
        for graph_name, plan in plans.items():
            yield f"{name}/{graph_name} ({target}) inputs", plan.inputs
            yield f"{name}/{graph_name} ({target}) outputs", plan.outputs
