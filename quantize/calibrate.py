"""Calibration: how large the inputs of layers are while prompts are played, and AWQ's scales.

ONNX Runtime plays the graphs that will be quantized; what is made of the values that it shows is
ModelOpt's. Blocks are calibrated one after another on recorded passes, the output of one being
the input of the next, so that memory holds one block, one pass of it, and the tokens of all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from sana_rt import graph_names
from sana_rt.bundle import Bundle
from sana_rt.errors import CalibrationError
from sana_rt.progress import ReportProgress
from sana_rt.quantize import graph_file
from sana_rt.quantize.calibration_table import (
    FORMAT,
    Algorithm,
    CalibrationTable,
    awq_layers,
)
from sana_rt.quantize.layers import Layer, layers_of
from sana_rt.quantize.minifloat import Float32Array
from sana_rt.quantize.passes import Array, Pass
from sana_rt.quantize.quantized_layer import QuantizedFormat

_REMEDY: Final = "`sana-rt generate --check-finite` names the first graph that writes them."


#: About as many rows of a layer's input are what AWQ compares its few candidates on.
SAMPLES: Final = 512


def calibrate(
    bundle: Bundle,
    variant: str,
    passes: Sequence[Pass],
    prompts: str,
    progress: ReportProgress,
    *,
    algorithm: Algorithm = "max",
    formats: Mapping[str, QuantizedFormat] | None = None,
) -> CalibrationTable:
    """Run the blocks of a float32 ``variant`` on recorded passes, each of which has no history.

    ``prompts`` is the SHA-256 of what was played; ``formats`` are those that a recipe gives to
    layers, for AWQ. Raises :class:`CalibrationError` if an input of a layer is NaN or infinite;
    it names the layer.
    """
    usable = _usable(passes)
    awq = awq_layers(algorithm, formats or {})
    amax: dict[str, float] = {}
    scales: dict[str, tuple[float, ...]] = {}
    count = len(passes[0].text)
    at: Sequence[Pass] = usable
    for index in range(count):
        name = graph_names.block(index)
        progress(name, index, count)
        path = bundle.path(bundle.manifest.variant(variant).graphs[name].path)
        block = _Block.open(index, path, awq)
        found, at = block.calibrate(at)
        for group, (largest, channels) in found.items():
            amax |= dict.fromkeys(group.names, largest)
            if channels is not None:
                scales |= dict.fromkeys(group.names, tuple(channels.tolist()))
    if len(usable) < len(passes):
        raise CalibrationError(
            f"The tokens in front of the blocks are NaN or infinite in pass {len(usable) + 1}.",
            expected="finite activations; all layers of blocks had them in the passes before.",
            remedy=_REMEDY,
        )
    checkpoint = bundle.manifest.variant(variant).source.sha256
    return CalibrationTable(FORMAT, 1, checkpoint, prompts, len(passes), algorithm, amax, scales)


def _usable(passes: Sequence[Pass]) -> Sequence[Pass]:
    """The passes up to the first one with bad tokens, but at least one.

    Bad tokens come from the pass before: its layers tell where they begin.
    """
    finite = [bool(np.isfinite(each.inputs["tokens"]).all()) for each in passes]
    return passes if all(finite) else passes[: max(finite.index(False), 1)]


@dataclass(frozen=True)
class _Group:
    """Layers that read one tensor and share its quantization.

    ``ff.conv_temp.1`` is the temporal convolution on the frame in front of a chunk, which a
    pass without a history does not have: it goes by the input of ``ff.conv_temp``.
    """

    input: str
    scaled: bool  # by AWQ
    layers: tuple[Layer, ...]

    @staticmethod
    def of(layers: Sequence[Layer], awq: Collection[str]) -> tuple[_Group, ...]:
        """The groups of a graph."""
        inputs = {layer.name: layer.input for layer in layers}
        found: dict[tuple[str, bool], list[Layer]] = {}
        for layer in layers:
            first = layer.name.removesuffix(".1") if layer.is_second_use else layer.name
            key = (inputs.get(first, layer.input), layer.name in awq)
            found.setdefault(key, []).append(layer)
        return tuple(_Group(*key, tuple(group)) for key, group in found.items())

    @property
    def name(self) -> str:
        return self.layers[0].name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    def weight(self, model: ModelProto, folder: Path) -> Float32Array:
        """The weights of the layers below each other, [sum of N, K]."""
        values = [graph_file.value(model, layer.weight, folder).T for layer in self.layers]
        return np.concatenate(values).astype(np.float32, copy=False)


_Found = dict[_Group, tuple[float, Float32Array | None]]


@dataclass(frozen=True, eq=False)
class _Block:
    """A block that is played, and whose layers' inputs are watched."""

    index: int
    model: ModelProto
    folder: Path
    groups: tuple[_Group, ...]
    session: ort.InferenceSession

    @staticmethod
    def open(index: int, path: Path, awq: Collection[str]) -> _Block:
        model = graph_file.read(path)
        groups = _Group.of(layers_of(graph_names.block(index), model), awq)
        watched = list(dict.fromkeys(group.input for group in groups))
        session = graph_file.session(model, path.parent, watched)
        return _Block(index, model, path.parent, groups, session)

    def calibrate(self, passes: Sequence[Pass]) -> tuple[_Found, list[Pass]]:
        """What is found of the groups, and the passes as the next block sees them."""
        from sana_rt.quantize import modelopt_cpu  # noqa: PLC0415 (an optional dependency)

        scales: dict[str, Float32Array | None] = {group.name: None for group in self.groups}
        samples = self._samples(passes)
        for group in self.groups:
            if group.scaled:
                weight = group.weight(self.model, self.folder)
                scales[group.name] = modelopt_cpu.awq_lite(weight, samples.pop(group.name))
        after: list[Pass] = []
        amax = modelopt_cpu.largest_magnitudes(self._play(passes, after), scales)
        found = {group: (amax[group.name], scales[group.name]) for group in self.groups}
        return found, after

    def _samples(self, passes: Sequence[Pass]) -> dict[str, Float32Array]:
        """Rows [K] of each input that AWQ scales, as many of every pass."""
        share = -(-SAMPLES // len(passes))
        rows: dict[str, list[Array]] = {group.name: [] for group in self.groups if group.scaled}
        random = np.random.default_rng(0)
        for values in self._play(passes, []) if rows else ():
            for name, found in rows.items():
                flat = values[name].reshape(-1, values[name].shape[-1])
                found.append(flat[random.permutation(len(flat))[:share]])
        return {name: np.concatenate(found) for name, found in rows.items()}

    def _play(self, passes: Sequence[Pass], after: list[Pass]) -> Iterator[dict[str, Array]]:
        """The input of each group in each pass; passes behind the block go to ``after``."""
        watched = list(dict.fromkeys(group.input for group in self.groups))
        for each in passes:
            outputs = ["tokens_out", *watched]
            tokens, *values = self.session.run(outputs, each.of_block(self.index))
            by_name = dict(zip(watched, values, strict=True))
            for group in self.groups:
                _check_finite(group.layers[0], by_name[group.input])
            after.append(replace(each, inputs={**each.inputs, "tokens": tokens}))
            yield {group.name: by_name[group.input] for group in self.groups}


def _check_finite(layer: Layer, values: Array) -> None:
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"The input of {layer.name} has values that are NaN or infinite.",
            expected="finite activations.",
            remedy=_REMEDY,
        )
