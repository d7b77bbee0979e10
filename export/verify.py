"""Every graph against its module: the same random inputs through ONNX Runtime and PyTorch.

A CPU has no bfloat16 kernels for most operators, so a bfloat16 graph is compared **widened**:
its weights keep their rounded values, and graph and module compute in float32. That shows that
the graph is the module's; it does not show how bfloat16 activations round.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data
from onnxruntime.capi import onnxruntime_pybind11_state as ort_c
from torch import nn

from sana_rt import graph_names
from sana_rt.bundle import Bundle
from sana_rt.errors import BundleFileError, VerificationError
from sana_rt.export.checkpoint import Checkpoint
from sana_rt.export.graph_definition import DType, GraphDefinition
from sana_rt.export.graphs import Sizes, definitions
from sana_rt.export.modules.gemma2 import ScaledEmbedding
from sana_rt.export.weights import Weights
from sana_rt.files import sha256
from sana_rt.manifest import Graph, Lora, Manifest, Variant, Verification
from sana_rt.model_spec import ModelSpec, differences
from sana_rt.tensors import TensorSpec, resolve

#: Two sizes of every dimension, one of them the smallest: a clip of one frame.
SIZES: Final = (
    Sizes(batch=2, frames=3, rows=4, columns=5, length=7),
    Sizes(batch=1, frames=1, rows=3, columns=2, length=5, seen=2),
)

#: Largest error accepted, relative to the largest output. Both sides compute in float32, whose
#: unit roundoff is u = 6e-8, and sum in different orders. A sum of K products of random signs
#: differs by about u·sqrt(K); K is at most 13,440, so 7e-6 a layer. A graph of the transformer
#: is at most a block deep: 2e-5, which leaves a factor of three.
TOLERANCE: Final = 2e-5
#: The text encoder is 26 layers deep and the autoencoder about 30: sqrt(26) times as much. And
#: the timestep's angles reach 1000, where u is 6e-5 of a radian.
DEEP_TOLERANCE: Final = 1e-4
_DEEP: Final = (
    graph_names.TEXT_ENCODER,
    graph_names.TIMESTEP,
    graph_names.DECODER_FIRST,
    graph_names.DECODER,
    graph_names.DECODER_WHOLE,
    graph_names.ENCODER,
)

#: A bfloat16 graph holds the module's constants rounded to bfloat16, whose unit roundoff this is.
BFLOAT16_TOLERANCE: Final = 2.0**-8

Outcome = Literal["ok", "failed", "not checked"]

_DTYPES: Final[Mapping[str, DType]] = {"float32": "float32", "bfloat16": "bfloat16"}
#: What the libraries raise for a graph that is none, although its hash is the listed one.
_UNREADABLE: Final = (
    DecodeError,
    ValueError,
    ort_c.Fail,
    ort_c.InvalidArgument,
    ort_c.InvalidGraph,
    ort_c.InvalidProtobuf,
    ort_c.NotImplemented,
    ort_c.RuntimeException,
)

_SEED: Final = 0
_MASKED: Final = -10000.0

Array = NDArray[Any]


@dataclass(frozen=True)
class Finding:
    """What one check came to; ``graph`` is None where it is of files or of a whole variant."""

    what: str
    outcome: Outcome
    message: str
    variant: str | None = None
    graph: str | None = None
    verification: Verification | None = None


def is_of(bundle: Bundle, checkpoint: Checkpoint) -> bool | None:
    """Whether any variant is of ``checkpoint``, LoRAs aside; every weight file is hashed.

    None if that cannot be told: a checkpoint without a part that the bundle has is hashed
    without it.
    """
    variants = bundle.manifest.variants.values()
    if any(_absent(name, checkpoint) for variant in variants for name in variant.graphs):
        return None
    return checkpoint.source.base in {variant.source.base for variant in variants}


def verify_bundle(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Check every file's hash, the model's fields, and every graph against its module.

    Findings come as they are made. What is not compared is a finding, too, and says why.
    """
    damaged = _damaged(bundle)
    count = len(bundle.manifest.files)
    whole = f"{count} files have their hashes"
    yield Finding("files", _passed(not damaged), "\n".join(damaged.values()) or whole)
    yield _model(bundle, checkpoint)
    yield _tokenizer(bundle, checkpoint)
    source = checkpoint.source
    base = None if is_of(bundle, checkpoint) is None else source.base
    for name, variant in bundle.manifest.variants.items():
        yield from _recorded(name, variant)
        if (reason := _reason(variant, base, source.loras)) is not None:
            yield Finding(name, "not checked", reason, name)
        else:
            yield from _graphs(bundle, name, checkpoint, damaged)
        yield from _plans(bundle.manifest, name)


def _damaged(bundle: Bundle) -> dict[str, str]:
    """What is wrong with files, by path."""
    wrong = {}
    for file in bundle.manifest.files:
        try:
            bundle.check_hash(file)
        except BundleFileError as error:
            wrong[file.path] = error.happened
    return wrong


def _model(bundle: Bundle, checkpoint: Checkpoint) -> Finding:
    """The fields of both; the instruction is no fact of the checkpoint, but an option."""
    found = [
        f"{name} is {there} in the bundle, {ours} in the checkpoint"
        for name, ours, there in differences(checkpoint.spec, bundle.manifest.model)
        if name != "text.instruction"
    ]
    return Finding("model", _passed(not found), "; ".join(found) or "its fields are the bundle's")


def _tokenizer(bundle: Bundle, checkpoint: Checkpoint) -> Finding:
    path = bundle.manifest.tokenizer
    if path is None or checkpoint.tokenizer is None:
        owner = "bundle" if path is None else "checkpoint"
        return Finding("tokenizer", "not checked", f"the {owner} has none")
    same = sha256(checkpoint.tokenizer) == bundle.manifest.file(path).sha256
    message = "it is the checkpoint's" if same else f"it is not {checkpoint.tokenizer}"
    return Finding("tokenizer", _passed(same), message)


def _recorded(name: str, variant: Variant) -> Iterator[Finding]:
    """Errors that were measured at export, and do not show what they should."""
    for graph_name, graph in variant.graphs.items():
        found = graph.verification
        if found is not None and not found.passed:
            message = "recorded at export, above its tolerance"
            what = f"{name}/{graph_name}"
            yield Finding(what, "failed", message, name, graph_name, found)


def _reason(variant: Variant, base: str | None, loras: tuple[Lora, ...]) -> str | None:
    """Why a variant's graphs are not compared with modules, if they are not."""
    if variant.quantization is not None:
        return "quantized: its graphs are not the modules'; sana-rt quality compares what it plays"
    if variant.dtype not in _DTYPES:
        return f"{variant.dtype}: compared are {' and '.join(_DTYPES)}"
    source = variant.source
    if base not in (None, source.base):
        return f"of another checkpoint: {source.checkpoint}, SHA-256 {source.base}"
    if source.loras != loras:
        merged = " and ".join(f"{each} (SHA-256 {each.sha256[:12]})" for each in source.loras)
        return f"it has {merged or 'no LoRA'}: give what it has with --lora"
    return None


def _graphs(
    bundle: Bundle, name: str, checkpoint: Checkpoint, damaged: Container[str]
) -> Iterator[Finding]:
    variant = bundle.manifest.variant(name)
    known = {each.name: each for each in definitions(checkpoint, _DTYPES[variant.dtype])}
    for graph_name, graph in variant.graphs.items():
        outcome, message, found = _judged(bundle, graph, known.get(graph_name), checkpoint, damaged)
        if absent := _absent(graph_name, checkpoint):
            outcome, message = "not checked", absent
        yield Finding(f"{name}/{graph_name}", outcome, message, name, graph_name, found)


_Judgement = tuple[Outcome, str, Verification | None]


def _judged(
    bundle: Bundle,
    graph: Graph,
    definition: GraphDefinition | None,
    checkpoint: Checkpoint,
    damaged: Container[str],
) -> _Judgement:
    """A graph compared with its module, or why it is not."""
    if any(path in damaged for path in (graph.path, *graph.weights)):
        return "not checked", "a file of it is damaged", None
    if definition is None:
        return "not checked", "it is no graph that this release makes of the checkpoint", None
    try:
        bundle.check_onnx(graph)
        found = compare(definition, bundle.path(graph.path), checkpoint)
    except (BundleFileError, *_UNREADABLE) as error:
        return "failed", f"it cannot be run: {error}", None
    return _passed(found.passed), "compared with its module", found


def _plans(manifest: Manifest, name: str) -> Iterator[Finding]:
    """Plans are not run; whether they are of the graphs that are there is in the manifest."""
    for target, plans in manifest.variant(name).plans.items():
        stale = sum(
            plan.built_from != manifest.built_from(name, graph) for graph, plan in plans.items()
        )
        message = "plans are not run here"
        if stale:
            message += f"; {stale} of {len(plans)} are of other graphs: sana-rt build renews them"
        yield Finding(f"{name} for {target}", "not checked", message, name)


def _absent(graph: str, checkpoint: Checkpoint) -> str | None:
    """Which part of the checkpoint a graph needs that is not given, and how to give it."""
    if graph == graph_names.TEXT_ENCODER and checkpoint.text_encoder is None:
        return "the checkpoint given has no text encoder: name it with --text-encoder"
    role = graph_names.role(graph)
    if role is not None and role.part == "autoencoder" and checkpoint.vae is None:
        return "the checkpoint given has no autoencoder: name it with --vae"
    return None


def _passed(passed: bool) -> Outcome:
    return "ok" if passed else "failed"


def require(name: str, found: Verification) -> Verification:
    """``found``, or :class:`VerificationError` if its error is above its tolerance (or NaN)."""
    if not found.passed:
        raise VerificationError(
            f"The graph {name!r} differs from its module by {found.max_error:.2g} of the largest "
            "output.",
            expected=f"at most {found.tolerance:.2g}.",
            remedy="report it, with the versions that `sana-rt doctor` prints.",
        )
    return found


def compare(definition: GraphDefinition, path: Path, checkpoint: Checkpoint) -> Verification:
    """Run a graph and its module on random inputs of :data:`SIZES`; measure the difference."""
    dims = [sizes.dims(checkpoint.spec) for sizes in SIZES]
    feeds = [_inputs(definition, each, checkpoint.spec) for each in dims]
    wanted = _module_outputs(definition, feeds, checkpoint.part(definition.source))
    session = _session(path)
    errors = [
        _error(actual, output)
        for feed, outputs in zip(feeds, wanted, strict=True)
        for actual, output in zip(session.run(None, feed), outputs, strict=True)
    ]
    names = sorted({dim for t in definition.inputs for dim in t.shape if isinstance(dim, str)})
    return Verification(
        max_error=float(np.max(errors)),  # NaN if one is
        tolerance=_tolerance(definition),
        reference=_reference(definition),
        dims=tuple({name: each[name] for name in names} for each in dims),
    )


def _tolerance(definition: GraphDefinition) -> float:
    if definition.dtype == "bfloat16":
        return BFLOAT16_TOLERANCE
    return DEEP_TOLERANCE if definition.name in _DEEP else TOLERANCE


def _reference(definition: GraphDefinition) -> str:
    versions = f"PyTorch {torch.__version__}, ONNX Runtime {ort.__version__} on the CPU"
    if definition.dtype == "float32":
        return versions
    return f"{versions}; bfloat16 weights, both widened to float32 arithmetic"


def _error(actual: Array, wanted: Array) -> float:
    """The largest difference over the largest value; for bytes see the comment."""
    difference = np.abs(actual.astype(np.float64) - wanted.astype(np.float64))
    if wanted.dtype == np.uint8:
        # An error of e before rounding flips a byte with probability 255·e, so the mean
        # difference is e again; more than one step apart is an error of its own.
        return float(max(difference.mean(), difference.max() - 1) / 255)
    scale = np.abs(wanted).max()
    return float(difference.max() / (scale if scale > 0 else 1))


def _module_outputs(
    definition: GraphDefinition, feeds: Sequence[Mapping[str, Array]], weights: Weights
) -> list[list[Array]]:
    module = load_module(definition, weights)
    outputs = []
    for feed in feeds:
        with torch.no_grad():
            result = module(*(torch.from_numpy(array) for array in feed.values()))
        tensors = result if isinstance(result, tuple) else (result,)
        outputs.append([tensor.numpy() for tensor in tensors])
    return outputs


def load_module(definition: GraphDefinition, weights: Weights) -> nn.Module:
    """A graph's module in float32, its weights and factors rounded to the graph's type first."""
    with torch.device("meta"):
        module = definition.build()
    rounded = torch.float32 if definition.dtype == "float32" else torch.bfloat16
    tensors = {
        name: weights.load(definition.prefix + name).to(rounded).float()
        for name in module.state_dict()
    }
    module.load_state_dict(tensors, strict=True, assign=True)
    for each in module.modules():
        if isinstance(each, ScaledEmbedding):
            each.factor_dtype = rounded
    return module.eval()


def _inputs(definition: GraphDefinition, dims: dict[str, int], spec: ModelSpec) -> dict[str, Array]:
    random = np.random.default_rng(_SEED)
    return {
        tensor.name: _example(tensor, resolve(tensor.shape, dims), random, spec)
        for tensor in definition.inputs
    }


def _example(
    tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator, spec: ModelSpec
) -> Array:
    """Random values such as the input may have."""
    if tensor.dtype == "int64":
        return _example_integers(tensor.name, shape, random, spec)
    if tensor.dtype == "uint8":
        return random.integers(256, size=shape, dtype=np.uint8)
    if tensor.name == "timestep":
        return random.uniform(0, 1000, shape).astype(np.float32)
    if tensor.name == "text_bias":
        kept = np.arange(shape[-1]) < shape[-1] // 2
        return np.where(kept, 0, _MASKED).astype(np.float32) * np.ones(shape, np.float32)
    values = random.standard_normal(shape, np.float32)
    return np.abs(values) if tensor.name == "state_k" else values  # a sum of relu(k)


def _example_integers(
    name: str, shape: tuple[int, ...], random: np.random.Generator, spec: ModelSpec
) -> Array:
    if name == "input_ids":
        return random.integers(spec.text.vocab_size, size=shape)
    if name == "attention_mask":  # padding on the right, more of it in later rows
        kept = shape[1] * 3 // 4 - np.arange(shape[0]) * (shape[1] // 4)
        return (np.arange(shape[1]) < kept[:, None]).astype(np.int64)
    return np.arange(shape[0]) + 1  # positions


def _session(path: Path) -> ort.InferenceSession:
    """The graph in ONNX Runtime, widened to float32 if it is in bfloat16."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # weights stay where they are mapped: a copy of the text encoder's would not fit
    options.add_session_config_entry("session.disable_prepacking", "1")
    model = onnx.load(path, load_external_data=False)
    if not _widen(model):
        return ort.InferenceSession(path, options)
    outside = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    values = [ort.OrtValue.ortvalue_from_numpy(_read(each, path.parent)) for each in outside]
    options.add_external_initializers([each.name for each in outside], values)
    for each in outside:
        each.data_type = onnx.TensorProto.FLOAT
    return ort.InferenceSession(model.SerializeToString(), options)


def _read(tensor: onnx.TensorProto, folder: Path) -> Array:
    """A bfloat16 tensor outside of the graph's file, in float32; see Bundle.check_onnx."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    stored: Array = np.memmap(
        folder / where["location"],
        dtype=np.uint16,
        mode="r",
        offset=int(where.get("offset", 0)),
        shape=tuple(tensor.dims),
    )
    wide = stored.astype(np.uint32)
    wide <<= 16  # a bfloat16 is the upper half of a float32
    return wide.view(np.float32)


def _widen(model: onnx.ModelProto) -> bool:
    """Turn every bfloat16 into float32, but for the weights outside; whether there was one."""
    bf16, f32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    graph = model.graph
    found = any(tensor.data_type == bf16 for tensor in graph.initializer)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == bf16:
            value.type.tensor_type.elem_type = f32
            found = True
    for tensor in graph.initializer:
        if tensor.data_type == bf16 and not uses_external_data(tensor):
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == bf16:
                attribute.i = f32
                found = True
    return found
