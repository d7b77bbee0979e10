"""Every graph against its module: the same random inputs through ONNX Runtime and PyTorch.

A CPU has no bfloat16 kernels for most operators, so a bfloat16 graph is compared **widened**:
its weights keep their rounded values, and graph and module compute in float32. That shows that
the graph is the module's; it does not show how bfloat16 activations round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data
from torch import nn

from sana_rt import graph_names
from sana_rt.bundle import Bundle
from sana_rt.errors import BundleFileError, VerificationError
from sana_rt.export.checkpoint import Checkpoint
from sana_rt.export.graph_definition import DType, GraphDefinition
from sana_rt.export.graphs import Sizes, definitions
from sana_rt.export.modules.gemma2 import ScaledEmbedding
from sana_rt.export.weights import Weights
from sana_rt.manifest import Verification
from sana_rt.model_spec import ModelSpec
from sana_rt.tensors import TensorSpec, resolve

#: Two sizes of every dimension, one of them the smallest: a clip of one frame.
SIZES: Final = (
    Sizes(batch=2, frames=3, rows=4, columns=5, length=7),
    Sizes(batch=1, frames=1, rows=3, columns=2, length=5),
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
    graph_names.ENCODER,
)

#: A bfloat16 graph holds the module's constants rounded to bfloat16, whose unit roundoff this is.
BFLOAT16_TOLERANCE: Final = 2.0**-8

_SEED: Final = 0
_MASKED: Final = -10000.0

Array = NDArray[Any]


@dataclass(frozen=True)
class Finding:
    """What the verification of one graph (or of all files, ``graph`` None) came to."""

    variant: str
    graph: str | None
    passed: bool
    message: str
    verification: Verification | None = None


def verify_bundle(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Check every file's hash, and every graph against the module of ``checkpoint``.

    Quantized variants are not the module's and are left out. Findings come as they are made.
    """
    yield from _verify_files(bundle)
    for name, variant in bundle.manifest.variants.items():
        if variant.quantization is not None or variant.dtype not in ("float32", "bfloat16"):
            yield Finding(name, None, True, "quantized: not compared with modules")
            continue
        known = {each.name: each for each in definitions(checkpoint, _dtype(variant.dtype))}
        for graph_name, graph in variant.graphs.items():
            if graph_name in known:
                path = bundle.path(graph.path)
                yield _compared(name, known[graph_name], path, checkpoint)
            else:
                yield Finding(name, graph_name, False, "its part is not in the checkpoint given")


def _dtype(dtype: str) -> DType:
    return "float32" if dtype == "float32" else "bfloat16"


def _verify_files(bundle: Bundle) -> Iterator[Finding]:
    wrong = []
    for file in bundle.manifest.files:
        try:
            bundle.check_hash(file)
        except BundleFileError as error:
            wrong.append(error.happened)
    count = len(bundle.manifest.files)
    yield Finding("", None, not wrong, "\n".join(wrong) or f"{count} files have their hashes")


def _compared(
    variant: str, definition: GraphDefinition, path: Path, checkpoint: Checkpoint
) -> Finding:
    found = compare(definition, path, checkpoint)
    passed = found.max_error <= found.tolerance
    return Finding(variant, definition.name, passed, "compared with its module", found)


def require(name: str, found: Verification) -> Verification:
    """``found``, or :class:`VerificationError` if its error is above its tolerance (or NaN)."""
    if not found.max_error <= found.tolerance:
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
    """A bfloat16 tensor outside of the graph's file, in float32."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    if Path(where["location"]).name != where["location"]:
        raise BundleFileError(
            f"The graph keeps the tensor {tensor.name!r} in {where['location']!r}.",
            expected="a file beside the graph.",
            remedy=f"do not use this bundle: {folder} was not written by sana-rt.",
        )
    stored: Array = np.memmap(
        folder / where["location"],
        dtype=np.uint16,
        mode="r",
        offset=int(where["offset"]),
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
