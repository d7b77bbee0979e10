"""Quantized variants of a bundle: one for TensorRT, one that emulates it on any CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from onnx import ModelProto

from sana_rt import graph_names
from sana_rt.bundle import Bundle
from sana_rt.bundle_writer import new_folder, publish
from sana_rt.errors import UsageError
from sana_rt.files import lock
from sana_rt.manifest import Form, Graph, Manifest, Quantization, Source, Variant
from sana_rt.progress import ReportProgress, silent
from sana_rt.quantize import freshness, graph_file, quantized_layer, rewrite
from sana_rt.quantize import recipe as recipes
from sana_rt.quantize.calibration_table import CalibrationTable
from sana_rt.quantize.layers import Layer, layers_of
from sana_rt.quantize.quantized_layer import QuantizedFormat, QuantizedLayer
from sana_rt.quantize.recipe import LoadedRecipe, Recipe

_SOURCE_DTYPES: Final = ("float32", "bfloat16")  # the preferred one first
Rewrite = Callable[[ModelProto, tuple[Layer, ...], Mapping[str, QuantizedLayer]], ModelProto]


@dataclass(frozen=True)
class _Form:
    """One of the two variants that a recipe makes, and the variant that it is made from."""

    name: str
    base: str
    form: Form
    rewrite: Rewrite
    description: str


@dataclass(frozen=True)
class _Job:
    """Everything that decides what the new graphs are, and the folder they go to."""

    bundle: Bundle
    source: str  # the variant that weights are taken from
    folder: Path
    forms: tuple[_Form, ...]
    formats: Mapping[str, QuantizedFormat]  # of the layers that are quantized
    table: CalibrationTable | None

    def write(self, progress: ReportProgress) -> dict[str, dict[str, Graph]]:
        """Write the graphs with quantized layers; by variant, then by name."""
        names = list(dict.fromkeys(layer.split("/")[0] for layer in self.formats))
        written: dict[str, dict[str, Graph]] = {form.name: {} for form in self.forms}
        for index, name in enumerate(names):
            progress(name, index, len(names))
            read = (self.source, *(form.base for form in self.forms))
            for variant in dict.fromkeys(read):
                self.bundle.check_graph(self.bundle.manifest.variant(variant).graphs[name])
            quantized = self._quantize(name)
            for form in self.forms:
                written[form.name][name] = self._write_graph(name, form, quantized)
        progress("manifest", len(names), len(names))
        return written

    def _quantize(self, name: str) -> dict[str, QuantizedLayer]:
        """The layers of one graph, quantized from the source's weights."""
        path = self.bundle.path(self.bundle.manifest.variant(self.source).graphs[name].path)
        model = graph_file.read(path)
        return _quantize(model, layers_of(name, model), path.parent, self.formats, self.table)

    def _write_graph(
        self, name: str, form: _Form, quantized: Mapping[str, QuantizedLayer]
    ) -> Graph:
        root = self.bundle.root
        graph = self.bundle.manifest.variant(form.base).graphs[name]
        source = self.bundle.path(graph.path)
        model = graph_file.read(source)
        rewritten = form.rewrite(model, layers_of(name, model), quantized)
        path = self.folder / form.form / f"{name}.onnx"
        weights = graph_file.write(rewritten, source.parent, path)
        return msgspec.structs.replace(
            graph,
            path=path.relative_to(root).as_posix(),
            weights=tuple(each.relative_to(root).as_posix() for each in weights),
            verification=None,
        )


def variant_names(manifest: Manifest, recipe: str, source: str) -> list[str]:
    """The variants that a recipe made of the weights of ``source``, the device's first."""
    weights = manifest.variant(source).source.sha256
    names = [*manifest.of_recipe(recipe, "device"), *manifest.of_recipe(recipe, "emulation")]
    return [name for name in names if manifest.variant(name).source.sha256 == weights]


def quantize_bundle(
    root: Path,
    loaded: LoadedRecipe,
    table: CalibrationTable | None = None,
    progress: ReportProgress = silent,
    source: str | None = None,
) -> Bundle:
    """Add the variants of a recipe to the bundle at ``root``, or replace them.

    The device variant is made from the bundle's bfloat16 variant, the emulation from its
    float32 one; without one of the two, only the other is written. Both take their weights
    from the float32 variant if there is one, so that they agree in every bit. Graphs in which
    nothing is quantized stay those of the variant that it is made from.

    ``source`` is a variant of the weights, by default the one of :func:`source_variant`. Without
    a calibration ``table`` the inputs of layers have the scale 1; that of the checkpoint may be
    used for its weights with LoRAs, too. Whether anything is to be made says :func:`reasons`.

    Raises:
        RecipeError: the recipe is for another model.
        UsageError: nothing to quantize.
        CalibrationError: the table is of another checkpoint or other formats, or does not know
            every layer.
        QuantizationError: a layer cannot have its format; the bundle is as it was before.
        BundleFileError: a graph to quantize is not the one that the manifest lists.
        LockedError: another process is writing the bundle.
    """
    with lock(root):
        bundle = Bundle.open(root)
        source = source_variant(bundle.manifest, source)
        forms = _forms(bundle.manifest, loaded.recipe, source)
        formats = layer_formats(bundle, loaded, source)
        weights = bundle.manifest.variant(source).source
        if table is not None:
            table.check(weights, formats)
        name = weights.variant_name(recipes.variant_name(loaded.recipe, "device"))
        with new_folder(root, name, bundle.manifest) as folder:
            graphs = _Job(bundle, source, folder, forms, formats, table).write(progress)
            variants = {
                form.name: _variant(bundle, form, graphs[form.name], loaded, table)
                for form in forms
            }
            return publish(root, bundle.manifest, bundle.manifest.with_variants(variants))


def reasons(
    bundle: Bundle,
    loaded: LoadedRecipe,
    calibration: Mapping[str, object],
    source: str | None = None,
) -> dict[str, tuple[str, ...]]:
    """Why each variant of the recipe would be made again, by its name; none if it is current.

    ``calibration`` are the fields of the manifest's that are known in advance. Raises what
    :func:`quantize_bundle` would if the recipe does not fit; reads all files of the variants.
    """
    forms = _forms(bundle.manifest, loaded.recipe, source_variant(bundle.manifest, source))
    return {
        form.name: freshness.reasons(bundle, form.name, form.base, loaded.sha256, calibration)
        for form in forms
    }


def layer_formats(
    bundle: Bundle, loaded: LoadedRecipe, source: str | None = None
) -> dict[str, QuantizedFormat]:
    """The formats that a recipe gives to layers, without those that stay as they are.

    Raises what :func:`quantize_bundle` would if the recipe does not fit; reads no weights.
    """
    source = source_variant(bundle.manifest, source)
    layers = _layers(bundle, source)
    for form in _forms(bundle.manifest, loaded.recipe, source):
        if set(_layers(bundle, form.base)) != set(layers):
            raise UsageError(
                f"The variants of the bundle differ in their layers ({form.base!r} is another).",
                expected="variants of one export.",
                remedy="export both again.",
            )
    found = recipes.resolve(loaded.recipe, list(layers))
    formats = {layer: rule.format for layer, rule in found.items() if rule.format != "unquantized"}
    if not formats:
        raise UsageError(
            f"The recipe {loaded.recipe.name!r} quantizes nothing.",
            expected="a recipe with nvfp4 or fp8 rules.",
            remedy="use the variant that is not quantized.",
        )
    for name, fmt in formats.items():
        quantized_layer.check(layers[name], fmt)
    return formats


def quantize_graph(
    name: str, source: Path, formats: Mapping[str, QuantizedFormat], folder: Path
) -> Path:
    """Write the device graph of the graph at ``source``, called ``name``, to ``folder``.

    For looking at one graph without a bundle. ``formats`` are those of the layers that are
    quantized, which may be another graph's, too; inputs have the scale 1.
    """
    model = graph_file.read(source)
    layers = layers_of(name, model)
    quantized = _quantize(model, layers, source.parent, formats)
    path = folder / f"{name}.onnx"
    graph_file.write(rewrite.device(model, layers, quantized), source.parent, path)
    return path


def _quantize(
    model: ModelProto,
    layers: Iterable[Layer],
    folder: Path,
    formats: Mapping[str, QuantizedFormat],
    table: CalibrationTable | None = None,
) -> dict[str, QuantizedLayer]:
    """Those of the layers that have a format, quantized; ``folder`` is where weights are."""
    quantized = {}
    for layer in layers:
        if layer.name in formats:
            weight = graph_file.value(model, layer.weight, folder).astype(np.float32)
            found = () if table is None else table.of_layer(layer.name)
            quantized[layer.name] = quantized_layer.quantize(
                layer, weight, formats[layer.name], *found
            )
    return quantized


def source_variant(manifest: Manifest, like: str | None = None) -> str:
    """The variant that weights are taken from: float32 before bfloat16, not quantized itself.

    It has the weights of the variant ``like``; by default those of the checkpoint without LoRAs
    or, where there are none, the first with some.
    """
    wanted = None if like is None else manifest.variant(like).source.sha256
    plain = [
        (name, variant)
        for name, variant in manifest.variants.items()
        if variant.quantization is None
        and variant.dtype in _SOURCE_DTYPES
        and wanted in (None, variant.source.sha256)
    ]
    if not plain:
        raise UsageError(
            f"The bundle has only the variants {', '.join(manifest.variants)}.",
            expected="one in float32 or bfloat16 that is not quantized.",
            remedy="export the checkpoint (sana-rt export).",
        )

    def preference(item: tuple[str, Variant]) -> tuple[bool, int]:
        _, variant = item
        return bool(variant.source.loras), _SOURCE_DTYPES.index(variant.dtype)

    return min(plain, key=preference)[0]


def read_layers(bundle: Bundle, variant: str) -> dict[str, tuple[Layer, ...]]:
    """The layers of the transformer, by graph; its ONNX file is the listed one."""
    found = {}
    for name, graph in bundle.manifest.variant(variant).graphs.items():
        if graph_names.is_quantizable(name):
            bundle.check_hash(bundle.manifest.file(graph.path))
            bundle.check_onnx(graph)
            found[name] = layers_of(name, graph_file.read(bundle.path(graph.path)))
    return found


def _forms(manifest: Manifest, recipe: Recipe, source: str) -> tuple[_Form, ...]:
    """What is made of the variants that have the weights of ``source``."""
    weights = manifest.variant(source).source
    plain = {
        variant.dtype: name
        for name, variant in reversed(manifest.variants.items())
        if variant.quantization is None and variant.source.sha256 == weights.sha256
    }
    forms = []
    if "bfloat16" in plain:
        name, base = _name(manifest, recipe, "device", weights), plain["bfloat16"]
        forms.append(_Form(name, base, "device", rewrite.device, "for TensorRT"))
    if "float32" in plain:
        name, base = _name(manifest, recipe, "emulation", weights), plain["float32"]
        forms.append(_Form(name, base, "emulation", rewrite.emulation, "emulated in float32"))
    return tuple(forms)


def _name(manifest: Manifest, recipe: Recipe, form: Form, weights: Source) -> str:
    """The variant that the recipe made of the same weights before, or the name of a new one.

    One whose LoRAs were trained further since, so that its weights are gone, is replaced.
    """
    plain = [each for each in manifest.variants.values() if each.quantization is None]
    there = {each.source.sha256 for each in plain}
    made = {name: manifest.variants[name].source for name in manifest.of_recipe(recipe.name, form)}
    for name, source in made.items():
        if source.sha256 == weights.sha256:
            return name
    for name, source in made.items():
        if source.sha256 not in there and weights.may_replace(source):
            return name
    name = weights.variant_name(recipes.variant_name(recipe, form))
    if name in manifest.variants:
        raise UsageError(
            f"The bundle has a variant {name!r}, which the recipe {recipe.name!r} did not make "
            "from these weights.",
            expected="a name that is free.",
            remedy="give the recipe another name, or remove that one first (sana-rt remove).",
        )
    return name


def _layers(bundle: Bundle, variant: str) -> dict[str, Layer]:
    return {layer.name: layer for each in read_layers(bundle, variant).values() for layer in each}


def _variant(
    bundle: Bundle,
    form: _Form,
    graphs: Mapping[str, Graph],
    loaded: LoadedRecipe,
    table: CalibrationTable | None,
) -> Variant:
    """The base with other graphs; a change of recipe or calibration makes its plans stale."""
    base = bundle.manifest.variant(form.base)
    recipe, calibration = loaded.recipe, None if table is None else table.record
    return msgspec.structs.replace(
        base,
        description=f"{recipe.description} ({form.description})",
        graphs={**base.graphs, **graphs},
        plans={},
        quantization=Quantization(recipe.name, loaded.sha256, form.form, calibration),
        maker=freshness.maker(base),
    )
