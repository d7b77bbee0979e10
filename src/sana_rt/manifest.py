"""The bundle's ``manifest.json``: what the files of a bundle are and how they fit together.

The format is specified in ``docs/manifest.md``; these types generate its JSON Schema.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from sana_rt import decode_window, graph_names
from sana_rt.decode_window import DecodeWindow
from sana_rt.errors import (
    ManifestDuplicateError,
    ManifestError,
    ManifestFieldError,
    ManifestLimitError,
    ManifestPathError,
    ManifestReferenceError,
    ManifestShapeError,
    ManifestSyntaxError,
    ManifestValueError,
    ManifestVersionError,
    PlanVersionError,
    ProfileError,
)
from sana_rt.graph_names import DECODER, DECODER_FIRST, DECODER_WHOLE
from sana_rt.model_spec import (
    Count,
    Frozen,
    ModelSpec,
    Natural,
    NonNegative,
    Positive,
    contradictions,
)
from sana_rt.signatures import CACHE_PREFIX, SEEN, signature
from sana_rt.tensors import Dim, TensorSpec, check_dtype, first_difference

MANIFEST_NAME: Final = "manifest.json"
FORMAT: Final = "sana-rt-bundle"
FORMAT_VERSION: Final = 2
MAX_MANIFEST_BYTES: Final = 16 << 20
MAX_DEPTH: Final = 16  # of nested objects and arrays; the format itself needs 9
MAX_INTEGER: Final = (1 << 53) - 1  # what every JSON reader holds exactly
MAX_FILES: Final = 65_536
MAX_FILE_BYTES: Final = 1 << 40
MAX_PATH_CHARS: Final = 255
_SUFFIX_CHARS: Final = 32  # of a variant's name that say which LoRAs it has

# A part of a path starts with no dot (hidden files, "..") and ends with none (Windows drops it).
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._+-]*[A-Za-z0-9_+-])?"
_PATH: Final = rf"^{_PART}(?:/{_PART})*$"
_NAME: Final = r"^[a-z0-9][a-z0-9._-]{0,63}$"
_SHA256: Final = r"^[0-9a-f]{64}$"

# The schema states these rules too; `check` raises each one's named error.
FilePath = Annotated[str, Meta(extra_json_schema={"pattern": _PATH, "maxLength": MAX_PATH_CHARS})]
Name = Annotated[str, Meta(extra_json_schema={"pattern": _NAME})]
Sha256 = Annotated[str, Meta(extra_json_schema={"pattern": _SHA256})]
Form = Literal["device", "emulation"]


class File(Frozen, frozen=True):
    """A file of the bundle; ``path`` is relative, with ``/``, in normal form."""

    path: FilePath
    bytes: Annotated[int, Meta(ge=0, extra_json_schema={"maximum": MAX_FILE_BYTES})]
    sha256: Sha256


class Verification(Frozen, frozen=True):
    """What ``sana-rt export`` measured: a graph's outputs against its module's.

    ``max_error`` is the largest absolute difference divided by the largest absolute value
    of the module's output, the worst over all outputs and all sizes tried.
    """

    max_error: NonNegative
    tolerance: Positive
    reference: str
    dims: tuple[dict[str, Natural], ...]

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; that of a NaN is not."""
        return self.max_error <= self.tolerance


class Graph(Frozen, frozen=True):
    """An ONNX graph, its weight files, and its signature."""

    path: FilePath
    weights: tuple[FilePath, ...]
    opset: Count
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    verification: Verification | None = None


class DimRange(Frozen, frozen=True):
    """The values of a named dimension that a plan accepts, and the one it is tuned for."""

    min: Natural
    opt: Natural
    max: Natural

    @staticmethod
    def fixed(value: int) -> DimRange:
        """The range of one value."""
        return DimRange(value, value, value)

    @property
    def is_fixed(self) -> bool:
        """Whether there is only one value."""
        return self.min == self.max

    def __str__(self) -> str:
        """One value, or ``min..max``."""
        return str(self.min) if self.is_fixed else f"{self.min}..{self.max}"


class Lora(Frozen, frozen=True):
    """A LoRA that was merged into a transformer's weights, and how much of it.

    ``name`` is that of its file or folder. ``sha256`` is the file's or, where PEFT's settings lie
    beside it, that of the text with the lines ``<SHA-256>  adapter_model.safetensors`` and
    ``<SHA-256>  adapter_config.json``, sorted.
    """

    name: str
    sha256: Sha256
    scale: float

    def __str__(self) -> str:
        """As ``sana-rt export --lora`` takes it."""
        return self.name if self.scale == 1 else f"{self.name}={self.scale:g}"


class Merged(Frozen, frozen=True):
    """What merged weights were made of: ``base`` is the checkpoint's hash."""

    base: Sha256
    loras: Annotated[tuple[Lora, ...], Meta(min_length=1)]


class Source(Frozen, frozen=True):
    """Where weights came from; the hash alone says whether two are the same."""

    checkpoint: str
    layout: str
    sha256: Sha256
    merged: Merged | None = None

    @property
    def base(self) -> str:
        """The hash of the checkpoint alone."""
        return self.sha256 if self.merged is None else self.merged.base

    @property
    def loras(self) -> tuple[Lora, ...]:
        """The LoRAs that were merged into the checkpoint's weights."""
        return () if self.merged is None else self.merged.loras

    def with_loras(self, loras: Iterable[Lora]) -> Source:
        """The source of this checkpoint's weights with ``loras`` merged into them; none is this.

        ``sha256`` becomes that of the text with the lines ``<base>  checkpoint`` and, for each
        LoRA, ``<its sha256>  lora <scale>``, sorted.
        """
        ordered = tuple(sorted(loras, key=lambda each: (each.name, each.sha256)))
        if not ordered:
            return self
        lines = [f"{self.base}  checkpoint\n"]
        lines += [f"{each.sha256}  lora {each.scale!r}\n" for each in ordered]
        digest = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
        return msgspec.structs.replace(self, sha256=digest, merged=Merged(self.base, ordered))

    def may_replace(self, before: Source) -> bool:
        """Whether ``before`` has the same LoRAs in the same checkpoint, be they trained further."""
        ours, theirs = ([(each.name, each.scale) for each in of.loras] for of in (self, before))
        return (self.base, ours) == (before.base, theirs)

    def variant_name(self, name: str) -> str:
        """What a new variant of these weights is called, that of the checkpoint's being ``name``.

        ``fp32`` with ``Style.safetensors=0.8`` becomes ``fp32-style-0.8``.
        """
        if not self.loras:
            return name
        parts = []
        for lora in self.loras:
            parts.append(lora.name.removesuffix(".safetensors"))
            parts += [] if lora.scale == 1 else [f"{lora.scale:g}"]
        suffix = re.sub(r"[^a-z0-9._-]+", "-", "-".join(parts).lower())
        if len(suffix) > _SUFFIX_CHARS:
            digest = hashlib.sha256(suffix.encode()).hexdigest()
            suffix = f"{suffix[: _SUFFIX_CHARS - 9]}-{digest[:8]}"
        return f"{name}-{suffix}"


class Calibration(Frozen, frozen=True):
    """How the scales of layers' inputs were found: the hash of the table, and what was played.

    ``source_sha256`` is the source of the weights that played: the variant's own, or those of
    its checkpoint without the LoRAs.
    """

    algorithm: Name
    sha256: Sha256
    prompts_sha256: Sha256
    source_sha256: Sha256
    passes: Count


class Quantization(Frozen, frozen=True):
    """How a variant was quantized: ``device`` graphs are TensorRT's, an ``emulation`` is played.

    Without ``calibration`` the inputs of layers have the scale 1.
    """

    recipe: Name
    recipe_sha256: Sha256
    form: Form
    calibration: Calibration | None = None

    def __str__(self) -> str:
        """Everything in a line, hashes shortened."""
        text = f"{self.recipe} ({self.form}, sha256 {self.recipe_sha256[:12]}"
        if self.calibration is not None:
            found = self.calibration
            text += f", calibrated by {found.algorithm} on {found.passes} passes"
            text += f", sha256 {found.sha256[:12]}"
        return f"{text})"


class BuiltFrom(Frozen, frozen=True):
    """What a plan was built from: the hashes of the graph's files, and how it was quantized."""

    graph: Sha256
    weights: tuple[Sha256, ...]
    quantization: Quantization | None = None


class Plan(Frozen, frozen=True):
    """A compiled TensorRT(-RTX) engine of one graph for one target, and the log of its build."""

    path: FilePath
    log: FilePath
    flavour: Literal["rtx", "trt"]
    flavour_version: str
    compute_capability: str
    profile: dict[str, DimRange]
    built_from: BuiltFrom
    options: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    activation_bytes: Natural
    weight_bytes: Natural
    user_allocation: bool

    def has_signature_of(self, graph: Graph) -> bool:
        """Whether inputs and outputs are those of ``graph``."""
        return (self.inputs, self.outputs) == (graph.inputs, graph.outputs)

    def check_holds(self, where: str, wanted: Mapping[str, DimRange], remedy: str) -> None:
        """Raise :class:`ProfileError` unless every wanted dimension lies in the profile."""
        outside = [
            name
            for name, accepted in self.profile.items()
            if name in wanted
            and not accepted.min <= wanted[name].min <= wanted[name].max <= accepted.max
        ]
        if outside:
            raise ProfileError(
                f"{where} would run with {_ranges(outside, wanted)}.",
                expected=f"{_ranges(outside, self.profile)}, what the plan was built for.",
                remedy=remedy,
            )

    def check_version(self, where: str, running: str, remedy: str) -> None:
        """Raise :class:`PlanVersionError` unless the ``running`` version built the plan."""
        if self.flavour_version != running:
            raise PlanVersionError(
                f"{where} was built by version {self.flavour_version} of {self.flavour!r}; "
                f"version {running} is running.",
                expected="the same version: plans are not portable between versions.",
                remedy=remedy,
            )


class Variant(Frozen, frozen=True):
    """One numerical version of the model: graph by graph name, plans by target, then name.

    One without ``decoder`` makes latents, not frames. ``maker`` says which code wrote the graphs;
    what another would write is not current.
    """

    dtype: str
    description: str
    source: Source
    graphs: dict[Name, Graph]
    plans: dict[Name, dict[Name, Plan]] = msgspec.field(default_factory=dict)
    quantization: Quantization | None = None
    decoder: DecodeWindow | None = None
    maker: str = ""

    def keeping_plans(self, before: Variant | None) -> Variant:
        """This variant with the plans of ``before``, which it replaces, for graphs like before.

        A plan records what it was built from, so `sana-rt build` renews those that are stale.
        """
        if before is None:
            return self
        kept = {
            target: {
                name: plan
                for name, plan in plans.items()
                if name in self.graphs and plan.has_signature_of(self.graphs[name])
            }
            for target, plans in before.plans.items()
        }
        plans = {target: plans for target, plans in kept.items() if plans}
        return msgspec.structs.replace(self, plans=plans)

    def paths(self) -> Iterator[str]:
        """The files that it refers to; variants may share some."""
        for graph in self.graphs.values():
            yield from (graph.path, *graph.weights)
        for plans in self.plans.values():
            for plan in plans.values():
                yield from (plan.path, plan.log)


class Manifest(Frozen, frozen=True, dict=True):
    """The whole of ``manifest.json``."""

    format: Literal["sana-rt-bundle"]
    format_version: Literal[2]
    created_by: str
    model: ModelSpec
    files: Annotated[tuple[File, ...], Meta(extra_json_schema={"maxItems": MAX_FILES})]
    variants: Annotated[dict[Name, Variant], Meta(min_length=1)]
    tokenizer: FilePath | None = None

    @cached_property
    def _files(self) -> dict[str, File]:
        return {file.path: file for file in self.files}

    def file(self, path: str) -> File:
        """The listed file at ``path``."""
        if path not in self._files:
            raise ManifestReferenceError(
                f"The manifest refers to {path!r}.", expected="a path that its files list."
            )
        return self._files[path]

    def variant(self, name: str) -> Variant:
        """The variant called ``name``."""
        if name not in self.variants:
            raise ManifestReferenceError(
                f"The bundle has no variant {name!r}.",
                expected=f"one of {sorted(self.variants)}.",
            )
        return self.variants[name]

    def built_from(self, variant: str, graph: str) -> BuiltFrom:
        """What a plan of a graph would be built from now."""
        found = self.variant(variant)
        one = found.graphs[graph]
        path, *weights = (self.file(path).sha256 for path in (one.path, *one.weights))
        return BuiltFrom(path, tuple(weights), found.quantization)

    def paths(self) -> set[str]:
        """The listed files that the tokenizer and the variants are in."""
        return {path for _, path in _references(self)}

    def with_variants(self, variants: Mapping[str, Variant]) -> Manifest:
        """With ``variants`` behind the others; one that replaces another keeps its plans."""
        others = {name: each for name, each in self.variants.items() if name not in variants}
        new = {name: each.keeping_plans(self.variants.get(name)) for name, each in variants.items()}
        return msgspec.structs.replace(self, variants={**others, **new})

    def with_current_plans(self) -> dict[str, Variant]:
        """The variants without the plans of graphs that were replaced since."""
        return {name: self._with_current_plans(name, each) for name, each in self.variants.items()}

    def _with_current_plans(self, name: str, variant: Variant) -> Variant:
        plans = {
            target: {
                graph: plan
                for graph, plan in plans.items()
                if plan.built_from == self.built_from(name, graph)
            }
            for target, plans in variant.plans.items()
        }
        return msgspec.structs.replace(variant, plans=plans)

    def of_recipe(self, recipe: str, form: Form) -> tuple[str, ...]:
        """The variants that a recipe made in this form, whatever they are called.

        Those of the checkpoint's own weights come before those with LoRAs.
        """
        found = [
            name
            for name, variant in self.variants.items()
            if variant.quantization is not None
            and (variant.quantization.recipe, variant.quantization.form) == (recipe, form)
        ]
        return tuple(sorted(found, key=lambda name: bool(self.variants[name].source.loras)))


def _ranges(names: Iterable[str], ranges: Mapping[str, DimRange]) -> str:
    return ", ".join(f"{name} {ranges[name]}" for name in names)


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented UTF-8 JSON; what :func:`decode` would refuse is not written."""
    check(manifest)  # first, because its messages name the variant and the graph
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    decode(data)
    return data


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
        raise _typed(error) from error
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Raise the named error of the first rule that the manifest breaks."""
    _check_files(manifest.files)
    _check_model(manifest.model)
    for name, variant in manifest.variants.items():
        _check_variant(name, variant, manifest.model)
    listed = {file.path for file in manifest.files}
    for where, path in _references(manifest):
        if path not in listed:
            raise ManifestReferenceError(
                f"{where} refers to {path!r}.", expected="a path that the manifest's files list."
            )


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the manifest."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **json.loads(msgspec.json.encode(msgspec.json.schema(Manifest))),  # defaults as lists
    }


def check_path(path: str) -> None:
    """Raise :class:`ManifestPathError` unless ``path`` stays inside the bundle, in normal form."""
    if len(path) > MAX_PATH_CHARS or not re.fullmatch(_PATH, path) or _is_manifest(path):
        raise ManifestPathError(
            f"The manifest lists the path {path!r}.",
            expected=f"at most {MAX_PATH_CHARS} of A-Z a-z 0-9 . _ + - in parts divided by '/', "
            "no part with '.' at its start or end, inside the bundle.",
        )


def _is_manifest(path: str) -> bool:
    return path.lower() == MANIFEST_NAME  # some file systems ignore case


def _parse(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_no_constant,
        )
        json.dumps(raw, ensure_ascii=False).encode()  # an escaped half of a pair has no UTF-8
    except (UnicodeError, json.JSONDecodeError) as error:
        raise ManifestSyntaxError(f"The manifest is not JSON in UTF-8: {error}.") from error
    except RecursionError as error:
        raise _too_deep() from error
    if not isinstance(raw, dict):
        raise ManifestSyntaxError(
            f"The manifest is a JSON {type(raw).__name__}.", expected="an object."
        )
    _check_depth(raw, 1)
    return raw


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ManifestDuplicateError(
            f"The manifest has an object with the key {_shortened(repr(key))} {count} times.",
            expected="no key twice.",
        )
    return unique


def _integer(text: str) -> int:
    # The length first: converting very many digits takes time that grows with their square.
    if len(text) > len(str(-MAX_INTEGER)) or abs(int(text)) > MAX_INTEGER:
        raise ManifestLimitError(
            f"The manifest contains the integer {_shortened(text)}.",
            expected=f"an absolute value of at most 2^53 - 1 = {MAX_INTEGER:,}.",
        )
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ManifestLimitError(
            f"The manifest contains the number {_shortened(text)}.",
            expected="numbers in the range of float64.",
        )
    return value


def _no_constant(text: str) -> float:
    raise ManifestSyntaxError(f"The manifest contains {text}.", expected="finite numbers.")


def _shortened(text: str, limit: int = 32) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def _check_depth(value: object, depth: int) -> None:
    if not isinstance(value, dict | list):
        return
    if depth > MAX_DEPTH:
        raise _too_deep()
    for child in value.values() if isinstance(value, dict) else value:
        _check_depth(child, depth + 1)


def _too_deep() -> ManifestLimitError:
    return ManifestLimitError(
        "The manifest nests objects and arrays too deeply.", expected=f"at most {MAX_DEPTH} levels."
    )


def _check_version(raw: Mapping[str, Any]) -> None:
    if raw.get("format") != FORMAT:
        raise ManifestVersionError(
            f"The manifest's format is {raw.get('format')!r}.", expected=f"{FORMAT!r}."
        )
    version = raw.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ManifestVersionError(
            f"The manifest's format_version is {version!r}.",
            expected=f"{FORMAT_VERSION}, the one this release reads.",
            remedy=f"make the bundle again (sana-rt export {_checkpoint_of(raw)} BUNDLE), or use "
            "the release that wrote it.",
        )


def _checkpoint_of(raw: Mapping[str, Any]) -> str:
    """The checkpoint of a version 1 manifest, fit for a shell and a terminal."""
    source = raw.get("source")
    name = source.get("checkpoint") if isinstance(source, dict) else None
    plain = isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_PATH_CHARS
    return shlex.quote(str(name)) if plain else "CHECKPOINT"


def _typed(error: msgspec.ValidationError) -> ManifestError:
    """The named error of what msgspec found; its messages have three forms."""
    text = _shortened(str(error), 500)
    if text.startswith(("Object contains unknown field", "Object missing required field")):
        return ManifestFieldError(f"The manifest has a wrong field: {text}.")
    if text.startswith("Expected") and ", got `" in text:
        return ManifestSyntaxError(f"The manifest has a value of the wrong type: {text}.")
    return ManifestValueError(f"The manifest has a value out of range: {text}.")


def _check_files(files: tuple[File, ...]) -> None:
    if len(files) > MAX_FILES:
        raise ManifestLimitError(
            f"The manifest lists {len(files):,} files.", expected=f"at most {MAX_FILES:,}."
        )
    seen: dict[str, str] = {}
    for file in files:
        check_path(file.path)
        if file.path.lower() in seen:
            raise ManifestDuplicateError(
                f"The manifest lists {seen[file.path.lower()]!r} and {file.path!r}.",
                expected="paths that differ by more than case.",
            )
        seen[file.path.lower()] = file.path
        if file.bytes > MAX_FILE_BYTES:
            raise ManifestLimitError(
                f"{file.path!r} has {file.bytes:,} bytes.", expected=f"at most {MAX_FILE_BYTES:,}."
            )
        _check_sha256(file.path, file.sha256)


def _check_model(model: ModelSpec) -> None:
    for found in contradictions(model):
        raise ManifestValueError(
            f"model.{found.field} is {found.value}.", expected=f"{found.expected}.", remedy=_REMEDY
        )


def _check_variant(name: str, variant: Variant, model: ModelSpec) -> None:
    check_name(name, "variant")
    check_dtype(variant.dtype, f"variant {name!r}")
    for text in (variant.source.sha256, variant.source.base, *_hashes(variant.source.loras)):
        _check_sha256(f"the source of {name!r}", text)
    _check_quantization(name, variant.quantization)
    for graph_name, graph in variant.graphs.items():
        check_name(graph_name, "graph")
        _check_tensors(f"{name}/{graph_name}", graph)
    _check_text_encoder(name, variant.graphs, model)
    _check_blocks(name, variant.graphs, model)
    _check_decoder(name, variant, model)
    for graph_name, graph in variant.graphs.items():
        _check_signature(f"{name}/{graph_name}", graph_name, graph, variant, model)
    for target, plans in variant.plans.items():
        check_name(target, "target")
        for graph_name, plan in plans.items():
            if graph_name not in variant.graphs:
                raise ManifestReferenceError(
                    f"{name!r} has a plan of {graph_name!r} for {target!r}.",
                    expected="the name of one of its graphs.",
                )
            _check_plan(f"{name}/{graph_name} ({target})", plan, variant.graphs[graph_name])


def _check_text_encoder(where: str, graphs: Mapping[str, Graph], model: ModelSpec) -> None:
    width, wanted = model.text.hidden_size, model.transformer.caption_channels
    if graph_names.TEXT_ENCODER in graphs and width != wanted:
        raise ManifestValueError(
            f"model.text.hidden_size is {width:,}, and {where!r} has a text encoder.",
            expected=f"{wanted:,}, which model.transformer.caption_channels is.",
            remedy=_REMEDY,
        )


def _check_blocks(where: str, graphs: Mapping[str, Graph], model: ModelSpec) -> None:
    """All blocks of the model, or none; nothing here grows with what ``num_layers`` says."""
    count, wanted = sum(map(graph_names.is_block, graphs)), model.transformer.num_layers
    if count not in (0, wanted):
        raise ManifestReferenceError(
            f"model.transformer.num_layers is {wanted:,}, and {where!r} has {count:,} blocks.",
            expected="the graph of every block, or of none.",
            remedy=_REMEDY,
        )
    for name in graph_names.blocks(count):
        if name not in graphs:
            raise ManifestReferenceError(
                f"{where!r} has {count:,} blocks, but no graph {name!r}.",
                expected="blocks that are numbered from 0 on.",
                remedy=_REMEDY,
            )


def _check_decoder(where: str, variant: Variant, model: ModelSpec) -> None:
    window, graphs = variant.decoder, variant.graphs
    if window is None:
        if graphs.keys() & {DECODER, DECODER_FIRST, DECODER_WHOLE}:
            raise ManifestReferenceError(
                f"{where!r} has graphs of a decoder, but its decoder is null.",
                expected="how the decoder is called.",
                remedy=_REMEDY,
            )
        return
    for name, seen, frames, caches in (
        (DECODER_FIRST, window.first_seen, window.first_frames, 0),
        (DECODER, SEEN if window.lookahead else window.seen, window.frames, window.caches),
    ):
        if name not in graphs:
            raise ManifestReferenceError(
                f"{where!r} has a decoder, but no graph {name!r}.",
                expected="both graphs of the decoder.",
            )
        wanted = (seen, frames, caches, window.caches)
        if (found := _decoder_signature(graphs[name])) != wanted:
            raise ManifestShapeError(
                f"{where}/{name} has (latent frames, frames, caches in, caches out) = {found}.",
                expected=f"{wanted}, as the variant's decoder says.",
            )
    for misfit in decode_window.misfits(window, model.vae):
        raise ManifestShapeError(
            f"The decoder of {where!r} has {misfit.field} {misfit.value:,}.",
            expected=f"{misfit.expected}.",
            remedy=_REMEDY,
        )


def _check_signature(
    where: str, name: str, graph: Graph, variant: Variant, model: ModelSpec
) -> None:
    """A graph that has a part in the model has the inputs and outputs that the model says."""
    if graph_names.role(name) is None:
        return
    wanted = signature(name, model, variant.dtype, variant.decoder)
    if wanted is None:
        raise ManifestReferenceError(
            f"{where} is a graph of the autoencoder, and model.vae.kind is {model.vae.kind!r}.",
            expected="no such graph: this release has none of that kind.",
            remedy=_REMEDY,
        )
    for side, found, follows in (
        ("inputs", graph.inputs, wanted.inputs),
        ("outputs", graph.outputs, wanted.outputs),
    ):
        if (difference := first_difference(found, follows)) is not None:
            index, there, expected = difference
            raise ManifestShapeError(
                f"{where} has {there} as {side}[{index}].",
                expected=f"{expected}, which follows from the manifest's model.",
                remedy=_REMEDY,
            )


def _decoder_signature(graph: Graph) -> tuple[Dim | None, Dim | None, int, int]:
    return (
        _dim(graph.inputs, "latents", 2),
        _dim(graph.outputs, "frames", 1),
        sum(tensor.name.startswith(CACHE_PREFIX) for tensor in graph.inputs),
        sum(tensor.name.startswith(CACHE_PREFIX) for tensor in graph.outputs),
    )


def _dim(tensors: Iterable[TensorSpec], name: str, axis: int) -> Dim | None:
    """A dimension of the tensor called ``name``; None if there is none."""
    shape = next((tensor.shape for tensor in tensors if tensor.name == name), ())
    return shape[axis] if axis < len(shape) else None


_REMEDY: Final = "export the checkpoint again; a manifest is not meant to be changed by hand."


def _hashes(loras: Iterable[Lora]) -> Iterator[str]:
    return (each.sha256 for each in loras)


def _check_quantization(where: str, quantization: Quantization | None) -> None:
    if quantization is None:
        return
    check_name(quantization.recipe, "recipe")
    _check_sha256(f"the recipe of {where}", quantization.recipe_sha256)
    found = quantization.calibration
    if found is not None:
        check_name(found.algorithm, "calibration algorithm")
        for text in (found.sha256, found.prompts_sha256, found.source_sha256):
            _check_sha256(f"the calibration of {where}", text)


def _check_plan(where: str, plan: Plan, graph: Graph) -> None:
    _check_tensors(where, plan)
    if not plan.has_signature_of(graph):
        raise ManifestShapeError(
            f"{where} has other inputs or outputs than its graph.",
            expected="those of the graph that it was built from.",
            remedy="build the plans again (sana-rt build).",
        )
    for text in (plan.built_from.graph, *plan.built_from.weights):
        _check_sha256(where, text)
    _check_quantization(where, plan.built_from.quantization)
    named = {dim for tensor in plan.inputs for dim in tensor.shape if isinstance(dim, str)}
    if named != set(plan.profile):
        wrong = sorted(named.symmetric_difference(plan.profile))
        raise ManifestReferenceError(
            f"{where} has a profile that differs from its inputs in {_listed(wrong)}.",
            expected="one range for each named dimension of its inputs.",
        )
    for dim, values in plan.profile.items():
        if not values.min <= values.opt <= values.max:
            raise ManifestValueError(
                f"{where} accepts {dim} {values.min} to {values.max}, tuned for {values.opt}.",
                expected="min <= opt <= max.",
            )


def _check_tensors(where: str, artifact: Graph | Plan) -> None:
    for side, tensors in (("inputs", artifact.inputs), ("outputs", artifact.outputs)):
        for tensor in tensors:
            tensor.check(f"{where} {side}")
        if len({tensor.name for tensor in tensors}) != len(tensors):
            name, count = Counter(tensor.name for tensor in tensors).most_common(1)[0]
            raise ManifestDuplicateError(
                f"{where} {side} list the tensor {name!r} {count} times.", expected="it once."
            )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def check_name(name: str, what: str) -> None:
    """Raise :class:`ManifestValueError` unless ``name`` may name a variant, graph, recipe, ..."""
    if not re.fullmatch(_NAME, name):
        raise ManifestValueError(
            f"The manifest names a {what} {name!r}.",
            expected="1 to 64 lower-case letters, digits, '.', '_' and '-', "
            "the first a letter or a digit.",
        )


def _check_sha256(where: str, text: str) -> None:
    if not re.fullmatch(_SHA256, text):
        raise ManifestValueError(
            f"{where} has the SHA-256 {text!r}.", expected="64 lower-case hex digits."
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
                for path in (plan.path, plan.log):
                    yield f"{variant_name}/{graph_name} ({target})", path
