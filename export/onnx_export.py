"""A checkpoint exported as the graphs of one variant of a bundle.

Each topology is traced once, without its weights; then every graph is stamped out with its
own, read from the checkpoint one tensor at a time. Memory is bounded by the largest tensor.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from sana_rt import __version__
from sana_rt import manifest as manifests
from sana_rt.bundle import Bundle, describe, save
from sana_rt.errors import ManifestValueError, UsageError
from sana_rt.export import verify
from sana_rt.export.checkpoint import TOKENIZER_NAME, Checkpoint
from sana_rt.export.graph_passes import Weight
from sana_rt.export.graphs import DType, GraphDefinition, Sizes, decode_window, definitions
from sana_rt.export.trace import OPSET, TORCH_DTYPES, Topology, trace
from sana_rt.export.weights import Weights
from sana_rt.files import PARTIAL_SUFFIX, lock, storage_errors, write_bytes, writing
from sana_rt.graph_names import DECODER
from sana_rt.manifest import MANIFEST_NAME, Graph, Manifest, Source, Variant
from sana_rt.model_spec import ModelSpec
from sana_rt.progress import Progress, silent

#: Where a tensor begins in a weights file: on a page, so that it can be memory-mapped.
ALIGNMENT: Final = 4096

#: Sizes to trace with. No two are equal and none is 1, so that no dimension is taken for
#: another or for a constant.
TRACE_SIZES: Final = Sizes(batch=2, frames=3, rows=4, columns=5, length=7)

_DESCRIPTIONS: Final[dict[DType, str]] = {
    "float32": "The checkpoint's weights in float32.",
    "bfloat16": "The checkpoint's weights rounded to bfloat16.",
}
_SUFFIXES: Final = (".onnx", ".weights", PARTIAL_SUFFIX)


@dataclass(frozen=True)
class ExportOptions:
    """How to export: the type of weights and activations, the variant's name, and checking."""

    dtype: DType = "float32"
    variant: str | None = None
    verify: bool = True

    @property
    def name(self) -> str:
        """The variant's name; by default that of the type."""
        if self.variant is not None:
            return self.variant
        return {"float32": "fp32", "bfloat16": "bf16"}[self.dtype]


def export_bundle(
    checkpoint: Checkpoint,
    root: Path,
    options: ExportOptions | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Write ``checkpoint`` as one variant of the bundle at ``root``.

    A bundle that exists keeps its other variants; a variant of the same name is replaced when
    the new one is complete, and not before. ``progress`` is called with the name of each graph
    before it is written, and at the end. Raises :class:`UsageError` where ``root`` holds
    something else, :class:`LockedError`, :class:`StorageError`, :class:`CheckpointFormatError`
    for weights that are not finite, and :class:`VerificationError`.
    """
    options = options or ExportOptions()
    _check_name(options.name)
    _check_place(root)
    with lock(root):
        source = checkpoint.source()
        before = _existing(root, checkpoint, source)
        folder = _folder(root, options.name, before)
        graphs = _write_graphs(checkpoint, root / folder, options, progress)
        variant = _variant(checkpoint, options.dtype, source, graphs)
        manifest = _manifest(checkpoint, root, before, options.name, variant)
        bundle = save(root, manifest)
        _remove_replaced(root, before, manifest)
        _clean(root, options.name, manifest)
    return bundle


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
            f"{root} is not empty and no bundle: it holds {', '.join(sorted(names)[:3])}, ...",
            expected="a bundle, an empty directory, or a path that does not exist.",
        )


def _existing(root: Path, checkpoint: Checkpoint, source: Source) -> Manifest | None:
    if not (root / MANIFEST_NAME).is_file():
        return None
    manifest = Bundle.read(root).manifest
    sources = [variant.source for variant in manifest.variants.values()]
    if source.sha256 not in {each.sha256 for each in sources}:
        raise UsageError(
            f"{root} is a bundle of {sources[0].checkpoint}, sha256 {sources[0].sha256}.",
            expected=f"one of {source.checkpoint}, sha256 {source.sha256}.",
            remedy="export to another directory.",
        )
    if manifest.model != checkpoint.spec:
        different = [
            name
            for name in ModelSpec.__struct_fields__
            if getattr(manifest.model, name) != getattr(checkpoint.spec, name)
        ]
        raise UsageError(
            f"{root} was exported with other settings of {', '.join(different)}.",
            expected="the same --preset and --instruction for all variants of a bundle.",
            remedy="export to another directory, or remove this one.",
        )
    return manifest


def _folder(root: Path, name: str, manifest: Manifest | None) -> str:
    """A folder for a variant's files that the manifest does not list, emptied.

    A variant that is replaced keeps its files until the manifest names the new ones, so the
    new ones need another folder: ``fp32``, then ``fp32.1``, then ``fp32`` again.
    """
    _clean(root, name, manifest)
    numbered = (f"{name}.{number}" for number in itertools.count(1))
    return next(each for each in itertools.chain([name], numbered) if not (root / each).exists())


def _clean(root: Path, name: str, manifest: Manifest | None) -> None:
    """Remove the variant's files that the manifest does not list: what an interruption left."""
    listed = {root / file.path for file in manifest.files} if manifest else set()
    own = re.compile(re.escape(name) + r"(\.\d+)?")
    with storage_errors(root):
        for folder in [path for path in root.iterdir() if own.fullmatch(path.name)]:
            for path in folder.glob("*"):
                if path not in listed and path.name.endswith(_SUFFIXES):
                    path.unlink()
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _remove_replaced(root: Path, before: Manifest | None, after: Manifest) -> None:
    """Remove the files that the manifest before listed and this one does not."""
    kept = {file.path for file in after.files}
    for file in before.files if before else ():
        path = root / file.path
        if file.path not in kept:
            with storage_errors(path):
                path.unlink(missing_ok=True)
                _remove_if_empty(path.parent)


def _variant(
    checkpoint: Checkpoint, dtype: DType, source: Source, graphs: dict[str, Graph]
) -> Variant:
    decoder = decode_window(checkpoint.spec.vae) if DECODER in graphs else None
    return Variant(dtype, _DESCRIPTIONS[dtype], source, graphs, decoder=decoder)


def _write_graphs(
    checkpoint: Checkpoint, folder: Path, options: ExportOptions, progress: Progress
) -> dict[str, Graph]:
    """Every graph of the checkpoint, traced, written and checked, by name."""
    planned = definitions(checkpoint, options.dtype)
    topologies: dict[str, Topology] = {}
    graphs = {}
    for index, definition in enumerate(planned):
        progress(definition.name, index, len(planned))
        if definition.topology not in topologies:
            dims = TRACE_SIZES.dims(checkpoint.spec)
            topologies[definition.topology] = trace(definition, dims)
        topology = topologies[definition.topology]
        graph = write_graph(topology, definition, checkpoint.part(definition.source), folder)
        if options.verify:
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
    path = folder / f"{definition.name}.weights"
    if topology.weights:
        own = weights.under(definition.prefix)
        with writing(path) as file:
            for weight in topology.weights:
                sources = {
                    name: _array(own.load(name), definition.dtype) for name in weight.sources
                }
                offset, length = _append(file, weight.evaluate(sources))
                proto.graph.initializer.append(_external(weight, path.name, offset, length))
    model = folder / f"{definition.name}.onnx"
    write_bytes(model, proto.SerializeToString(deterministic=True))
    return Graph(
        path=f"{folder.name}/{model.name}",
        weights=(f"{folder.name}/{path.name}",) if topology.weights else (),
        opset=OPSET,
        inputs=definition.inputs,
        outputs=definition.outputs,
    )


def _array(tensor: torch.Tensor, dtype: DType) -> NDArray[Any]:
    """A tensor's values in ``dtype``; numpy has bfloat16 from ml_dtypes."""
    return ir.tensor(tensor.to(TORCH_DTYPES[dtype])).numpy()


def _append(file: IO[bytes], value: NDArray[Any]) -> tuple[int, int]:
    """Write a tensor at the next page; returns its offset and length in bytes."""
    offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    file.seek(offset)
    file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return offset, value.nbytes


def _external(weight: Weight, location: str, offset: int, length: int) -> onnx.TensorProto:
    proto = onnx.TensorProto(name=weight.name, data_type=weight.dtype.value, dims=weight.shape)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))
    return proto


def _write_tokenizer(checkpoint: Checkpoint, root: Path) -> str | None:
    if checkpoint.tokenizer is None:
        return None
    with storage_errors(checkpoint.tokenizer):
        write_bytes(root / TOKENIZER_NAME, checkpoint.tokenizer.read_bytes())
    return TOKENIZER_NAME


def _manifest(
    checkpoint: Checkpoint,
    root: Path,
    before: Manifest | None,
    name: str,
    variant: Variant,
) -> Manifest:
    """The manifest with the new variant beside those that were there before."""
    variants = {**before.variants} if before else {}
    variants[name] = variant.keeping_plans(variants.pop(name, None))
    fresh = {path for graph in variant.graphs.values() for path in (graph.path, *graph.weights)}
    kept = {path for each in variants.values() for path in each.paths()} - fresh
    files = [file for file in before.files if file.path in kept] if before else []
    new = {root / path for path in fresh}
    tokenizer = _write_tokenizer(checkpoint, root)
    if tokenizer is not None:
        new.add(root / tokenizer)
    return Manifest(
        format=manifests.FORMAT,
        format_version=manifests.FORMAT_VERSION,
        created_by=f"sana-rt {__version__}",
        model=checkpoint.spec,
        files=tuple(sorted((*files, *describe(root, new)), key=lambda file: file.path)),
        variants=variants,
        tokenizer=tokenizer,
    )
