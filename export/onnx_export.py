"""A checkpoint exported as the graphs of one variant of a bundle.

Each topology is traced once, without its weights; then every graph is stamped out with its
own, read from the checkpoint one tensor at a time. Memory is bounded by the largest tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from sana_rt import __version__, weights_file
from sana_rt import manifest as manifests
from sana_rt.bundle import Bundle
from sana_rt.bundle_writer import new_folder, publish
from sana_rt.errors import ManifestValueError, UsageError
from sana_rt.export import autoencoders, freshness, shared, verify
from sana_rt.export.checkpoint import TOKENIZER_NAME, Checkpoint
from sana_rt.export.graph_definition import DType, GraphDefinition
from sana_rt.export.graph_passes import Weight
from sana_rt.export.graphs import Sizes, definitions
from sana_rt.export.trace import OPSET, TORCH_DTYPES, Topology, trace
from sana_rt.export.weights import Weights
from sana_rt.files import lock, sha256, storage_errors, write_bytes
from sana_rt.graph_names import DECODER
from sana_rt.manifest import MANIFEST_NAME, Graph, Manifest, Source, Variant
from sana_rt.model_spec import differences
from sana_rt.progress import ReportProgress, silent
from sana_rt.weights_file import Extent

#: Sizes to trace with. No two are equal and none is 1, so that no dimension is taken for
#: another or for a constant.
TRACE_SIZES: Final = Sizes(batch=2, frames=3, rows=4, columns=5, length=7)

_CREATED_BY: Final = f"sana-rt {__version__}"
_DESCRIPTIONS: Final[dict[DType, str]] = {
    "float32": "The checkpoint's weights in float32.",
    "bfloat16": "The checkpoint's weights rounded to bfloat16.",
}


@dataclass(frozen=True)
class ExportOptions:
    """How to export: the type of weights and activations, the variant's name, and checking.

    By default the name is that of the type and, if there are some, of the LoRAs. ``overwrite``
    replaces a bundle of another checkpoint or of other settings, all of it.
    """

    dtype: DType = "float32"
    variant: str | None = None
    verify: bool = True
    overwrite: bool = False

    def name(self, source: Source) -> str:
        """What the variant of the weights of ``source`` is called."""
        if self.variant is not None:
            return self.variant
        return source.variant_name({"float32": "fp32", "bfloat16": "bf16"}[self.dtype])


def export_bundle(
    checkpoint: Checkpoint,
    root: Path,
    options: ExportOptions | None = None,
    progress: ReportProgress = silent,
) -> Bundle:
    """Write ``checkpoint`` as one variant of the bundle at ``root``.

    A bundle that exists keeps its other variants, and graphs that one of them has already are
    shared with it; a variant of the same name is replaced when the new one is complete, and not
    before. ``progress`` is called with the name of each graph before it is written, and at the
    end. Whether that is necessary says
    :func:`sana_rt.export.freshness.reasons`. Raises :class:`UsageError` where ``root`` holds
    something else, :class:`LockedError`, :class:`StorageError`, :class:`CheckpointFormatError`
    for weights that are not finite, and :class:`VerificationError`.
    """
    options = options or ExportOptions()
    name = options.name(checkpoint.source)
    _check_name(name)
    _check_place(root)
    with lock(root):
        before = Bundle.read(root).manifest if Bundle.exists(root) else None
        kept = _kept(root, before, checkpoint, options)
        _check_replaced(root, kept.variants.get(name), name, checkpoint)
        with new_folder(root, name, before) as folder:
            there = shared.graphs(Bundle(root, kept), checkpoint, options.dtype, besides=name)
            graphs = _write_graphs(checkpoint, folder, options, there, progress)
            variant = _variant(checkpoint, options.dtype, graphs)
            after = msgspec.structs.replace(
                kept.with_variants({name: variant}),
                created_by=_CREATED_BY,
                tokenizer=_write_tokenizer(checkpoint, root, before),
            )
            return publish(root, before, after)


def _check_name(name: str) -> None:
    try:
        manifests.check_name(name, "variant")
    except ManifestValueError as error:
        raise UsageError(
            f"{name!r} cannot be the name of a variant.",
            expected="lower-case letters, digits, '.', '_' and '-'.",
        ) from error


def _check_place(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file.", expected="a directory for the bundle.")
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if names and not names & {MANIFEST_NAME, ".lock"}:
        raise UsageError(
            f"{root} is not empty and not a bundle: it holds {', '.join(sorted(names)[:3])}, ...",
            expected="a bundle, an empty directory, or a path that does not exist.",
        )


def _kept(
    root: Path, before: Manifest | None, checkpoint: Checkpoint, options: ExportOptions
) -> Manifest:
    """The manifest that the variant goes into: what stays of the one of before."""
    if before is None:
        return _empty(checkpoint)
    if options.overwrite and not _same_model(before, checkpoint):
        return msgspec.structs.replace(before, model=checkpoint.spec, variants={})
    _check_same_model(root, before, checkpoint)
    return before


def _same_model(manifest: Manifest, checkpoint: Checkpoint) -> bool:
    hashes = {variant.source.base for variant in manifest.variants.values()}
    return checkpoint.source.base in hashes and manifest.model == checkpoint.spec


def _check_same_model(root: Path, manifest: Manifest, checkpoint: Checkpoint) -> None:
    source, remedy = checkpoint.source, "export to another directory, or replace it: --overwrite."
    sources = [variant.source for variant in manifest.variants.values()]
    if source.base not in {each.base for each in sources}:
        raise UsageError(
            f"{root} is a bundle of {sources[0].checkpoint}, sha256 {sources[0].base}.",
            expected=f"one of {source.checkpoint}, sha256 {source.base}.",
            remedy=remedy,
        )
    found = [
        f"{name} is {ours}, in the bundle {there}"
        for name, ours, there in differences(checkpoint.spec, manifest.model)
    ]
    if found:
        raise UsageError(
            f"{root} is of the same weights, but of another model: {'; '.join(found)}.",
            expected="the same configuration, --preset and --instruction for all variants.",
            remedy=remedy,
        )


def _check_replaced(root: Path, before: Variant | None, name: str, checkpoint: Checkpoint) -> None:
    """A variant is replaced by one with the same LoRAs, be they trained further, or none."""
    if before is None:
        return
    there, wanted = (
        ", ".join(map(str, source.loras)) or "no LoRA"
        for source in (before.source, checkpoint.source)
    )
    if there != wanted:
        raise UsageError(
            f"The variant {name!r} of {root} has {there}.",
            expected=f"a name that is free, or one of a variant with {wanted}.",
            remedy="give another --variant, or remove that one first (sana-rt remove).",
        )


def _variant(checkpoint: Checkpoint, dtype: DType, graphs: dict[str, Graph]) -> Variant:
    autoencoder = autoencoders.find(checkpoint.spec.vae) if DECODER in graphs else None
    decoder = None if autoencoder is None else autoencoder.window()
    loras = ", ".join(map(str, checkpoint.source.loras))
    return Variant(
        dtype,
        _DESCRIPTIONS[dtype] + (f" Merged into them: {loras}." if loras else ""),
        checkpoint.source,
        graphs,
        decoder=decoder,
        maker=freshness.maker(),
    )


def _write_graphs(
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    there: Mapping[str, Graph],
    progress: ReportProgress,
) -> dict[str, Graph]:
    """Every graph of the checkpoint, by name: traced and written, unless it is ``there``."""
    planned = definitions(checkpoint, options.dtype)
    topologies: dict[str, Topology] = {}
    graphs = {}
    for index, definition in enumerate(planned):
        progress(definition.name, index, len(planned))
        graph = there.get(definition.name)
        if graph is None:
            if definition.topology not in topologies:
                dims = TRACE_SIZES.dims(checkpoint.spec)
                topologies[definition.topology] = trace(definition, dims)
            topology = topologies[definition.topology]
            graph = write_graph(topology, definition, checkpoint.part(definition.source), folder)
        if options.verify and graph.verification is None:
            found = verify.compare(definition, folder.parent / graph.path, checkpoint)
            verify.require(definition.name, found)
            graph = msgspec.structs.replace(graph, verification=found)
        graphs[definition.name] = graph
    progress("manifest", len(planned), len(planned))
    return graphs


def write_graph(
    topology: Topology, definition: GraphDefinition, weights: Weights, folder: Path
) -> Graph:
    """Write ``<graph>.onnx`` and, beside it, ``<graph>.weights``; paths begin with the folder."""
    proto = ir.to_proto(topology.model)
    del proto.graph.input[len(definition.inputs) :]  # the weights, which become initializers
    path = folder / f"{definition.name}.onnx"
    own = weights.under(definition.prefix)
    with weights_file.beside(path) as writer:
        for weight in topology.weights:
            sources = {name: _array(own.load(name), definition.dtype) for name in weight.sources}
            extent = writer.append(_bytes(weight.evaluate(sources)))
            proto.graph.initializer.append(_external(weight, extent))
    write_bytes(path, proto.SerializeToString(deterministic=True))
    return Graph(
        path=f"{folder.name}/{path.name}",
        weights=tuple(f"{folder.name}/{each.name}" for each in writer.files),
        opset=OPSET,
        inputs=definition.inputs,
        outputs=definition.outputs,
    )


def _array(tensor: torch.Tensor, dtype: DType) -> NDArray[Any]:
    """A tensor's values in ``dtype``; numpy has bfloat16 from ml_dtypes."""
    return ir.tensor(tensor.to(TORCH_DTYPES[dtype])).numpy()


def _bytes(value: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _external(weight: Weight, extent: Extent) -> onnx.TensorProto:
    proto = onnx.TensorProto(name=weight.name, data_type=weight.dtype.value, dims=weight.shape)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in extent._asdict().items():
        proto.external_data.add(key=key, value=str(value))
    return proto


def _write_tokenizer(checkpoint: Checkpoint, root: Path, before: Manifest | None) -> str | None:
    """The path of the checkpoint's tokenizer; the bundle's until now is not written over."""
    if checkpoint.tokenizer is None:
        return None
    listed = {file.path: file.sha256 for file in before.files} if before else {}
    wanted = sha256(checkpoint.tokenizer)
    names = (TOKENIZER_NAME, f"1.{TOKENIZER_NAME}")
    for name in names:
        path = root / name
        if listed.get(name) == wanted and path.is_file() and sha256(path) == wanted:
            return name
    name = next(each for each in names if each not in listed)
    with storage_errors(checkpoint.tokenizer):
        write_bytes(root / name, checkpoint.tokenizer.read_bytes())
    return name


def _empty(checkpoint: Checkpoint) -> Manifest:
    return Manifest(
        format=manifests.FORMAT,
        format_version=manifests.FORMAT_VERSION,
        created_by=_CREATED_BY,
        model=checkpoint.spec,
        files=(),
        variants={},
    )
