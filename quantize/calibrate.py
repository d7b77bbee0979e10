"""Calibration: the largest magnitude that each layer's input has while prompts are played.

Blocks are calibrated one after another on recorded passes, the output of one being the input
of the next, so that memory holds one block and the recorded tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from sana_rt.bundle import Bundle
from sana_rt.errors import CalibrationError
from sana_rt.files import storage_errors
from sana_rt.manifest import Manifest
from sana_rt.model_spec import Count, Frozen, NonNegative
from sana_rt.quantize import graph_file
from sana_rt.quantize.layers import Layer, layers_of

FORMAT: Final = "sana-rt-calibration"
_REMEDY: Final = "calibrate again (sana-rt quantize --prompts)."

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]


class CalibrationTable(Frozen, frozen=True):
    """The largest magnitudes by layer, and what they were measured on."""

    format: Literal["sana-rt-calibration"]
    format_version: Literal[1]
    checkpoint: str  # SHA-256, as in the manifest
    prompts: str  # SHA-256 of the prompts file
    passes: Count
    amax: dict[str, NonNegative]

    @property
    def sha256(self) -> str:
        """The hash of the table as it is stored."""
        return hashlib.sha256(encode(self)).hexdigest()

    def check(self, manifest: Manifest, layers: Sequence[str]) -> None:
        """Raise :class:`CalibrationError` if it is of another checkpoint or lacks a layer."""
        if self.checkpoint != manifest.source.sha256:
            raise CalibrationError(
                f"The calibration is of the checkpoint with SHA-256 {self.checkpoint}.",
                expected=f"{manifest.source.sha256}, that of {manifest.source.checkpoint}.",
                remedy=_REMEDY,
            )
        missing = [layer for layer in layers if layer not in self.amax]
        if missing:
            raise CalibrationError(
                f"The calibration knows nothing of {', '.join(missing[:5])}"
                + (f" and {len(missing) - 5} more." if len(missing) > 5 else "."),
                expected="all layers that the recipe quantizes; calibrated are those of blocks.",
                remedy="let the recipe leave them alone, or quantize without calibration.",
            )


@dataclass(frozen=True)
class Pass:
    """What the blocks are given in one pass of the transformer at ``timestep`` (0..1000).

    ``inputs`` are those of the first block but for the text's; ``text`` has (K, V) by block;
    ``embedding`` is what the final layer has beside the tokens.
    """

    timestep: float
    inputs: Mapping[str, Array]
    text: tuple[tuple[Array, Array], ...]
    embedding: Array

    def of_block(self, index: int) -> dict[str, Array]:
        """The inputs of a block, if ``tokens`` are those in front of it."""
        text_k, text_v = self.text[index]
        return {**self.inputs, "text_k": text_k, "text_v": text_v}


def calibrate(
    bundle: Bundle, variant: str, passes: Sequence[Pass], prompts: str, progress: Progress
) -> CalibrationTable:
    """Run the blocks of a float32 ``variant`` on recorded passes, each of which has no history.

    ``prompts`` is the SHA-256 of what was played. Raises :class:`CalibrationError` if an input
    of a layer is NaN or infinite; it names the layer.
    """
    amax: dict[str, float] = {}
    count = len(passes[0].text)
    for index in range(count):
        name = f"block_{index:02d}"
        progress(name, index, count)
        path = bundle.path(bundle.manifest.variant(variant).graphs[name].path)
        found, passes = _calibrate_block(name, index, path, passes)
        amax |= found
    return CalibrationTable(FORMAT, 1, bundle.manifest.source.sha256, prompts, len(passes), amax)


def _calibrate_block(
    name: str, index: int, path: Path, passes: Sequence[Pass]
) -> tuple[dict[str, float], list[Pass]]:
    """The magnitudes of a block's layers, and the passes as the next block sees them."""
    model = graph_file.read(path)
    layers = layers_of(name, model)
    watched = list(dict.fromkeys(layer.input for layer in layers))
    session = graph_file.session(model, path.parent, watched)
    amax = dict.fromkeys(watched, 0.0)
    after = []
    for each in passes:
        tokens, *values = session.run(["tokens_out", *watched], each.of_block(index))
        for data, value in zip(watched, values, strict=True):
            amax[data] = float(np.maximum(amax[data], np.abs(value).max()))  # keeps a NaN
        after.append(replace(each, inputs={**each.inputs, "tokens": tokens}))
    for layer in layers:
        _check_finite(layer, amax[layer.input])
    return _shared({layer.name: amax[layer.input] for layer in layers}), after


def _shared(amax: Mapping[str, float]) -> dict[str, float]:
    """A layer's second use has the first's magnitude, too.

    ``ff.conv_temp.1`` is the temporal convolution on the frame in front of a chunk, which a
    pass without a history does not have.
    """
    first = {name: name.removesuffix(".1") for name in amax}
    return {name: max(value, amax.get(first[name], 0.0)) for name, value in amax.items()}


def _check_finite(layer: Layer, amax: float) -> None:
    if not np.isfinite(amax):
        raise CalibrationError(
            f"The input of {layer.name} has values that are NaN or infinite.",
            expected="finite activations.",
            remedy="`sana-rt generate --check-finite` names the first graph that writes them.",
        )


def encode(table: CalibrationTable) -> bytes:
    """A table as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n"


def read(path: Path) -> CalibrationTable:
    """Read a table; raises :class:`CalibrationError` if it is none."""
    with storage_errors(path):
        data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=CalibrationTable)
    except msgspec.DecodeError as error:
        raise CalibrationError(
            f"{path} is no calibration table: {error}.",
            expected=f"JSON of the format {FORMAT!r}, version 1.",
            remedy=_REMEDY,
        ) from error
