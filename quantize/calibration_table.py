"""What a calibration found, as a file: it is kept, and checked before it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from sana_rt import documents
from sana_rt.errors import CalibrationError, some
from sana_rt.manifest import Calibration, Source
from sana_rt.model_spec import Count, Frozen, NonNegative
from sana_rt.quantize.quantized_layer import QuantizedFormat

Algorithm = Literal["max", "awq-lite"]
FORMAT: Final = "sana-rt-calibration"
_REMEDY: Final = "calibrate again (sana-rt quantize --prompts)."


class CalibrationTable(Frozen, frozen=True):
    """What calibration found by layer, and what it was measured on.

    ``amax`` is the largest magnitude of a layer's input, after its channels [K] are multiplied
    by ``channel_scales``, which AWQ gives some layers; see :class:`QuantizedLayer`.
    """

    format: Literal["sana-rt-calibration"]
    format_version: Literal[1]
    checkpoint: str  # SHA-256, as in the manifest
    prompts: str  # SHA-256 of the prompts file
    passes: Count
    algorithm: Algorithm
    amax: dict[str, NonNegative]
    channel_scales: dict[str, tuple[NonNegative, ...]]

    @property
    def sha256(self) -> str:
        """The hash of the table as it is stored."""
        return hashlib.sha256(encode(self)).hexdigest()

    @property
    def record(self) -> Calibration:
        """What a manifest says of it."""
        return Calibration(self.algorithm, self.sha256, self.prompts, self.checkpoint, self.passes)

    def of_layer(self, layer: str) -> tuple[float, tuple[float, ...] | None]:
        """The largest magnitude of a layer's input, and its channel scales if it has some."""
        return self.amax[layer], self.channel_scales.get(layer)

    def check(self, source: Source, formats: Mapping[str, QuantizedFormat]) -> None:
        """Raise :class:`CalibrationError` for other weights, or other formats of layers.

        A calibration of the checkpoint does for its weights with LoRAs as well.
        """
        if self.checkpoint not in (source.sha256, source.base):
            raise CalibrationError(
                f"The calibration is of the checkpoint with SHA-256 {self.checkpoint}.",
                expected=" or ".join(dict.fromkeys((source.sha256, source.base)))
                + f", that of {source.checkpoint}.",
                remedy=_REMEDY,
            )
        missing = [layer for layer in formats if layer not in self.amax]
        if missing:
            raise CalibrationError(
                f"The calibration has no entry for {some(missing)}.",
                expected="all layers that the recipe quantizes; only blocks are calibrated.",
                remedy="let the recipe leave them alone, or quantize without calibration.",
            )
        scaled = awq_layers(self.algorithm, formats)
        unfit = [layer for layer in formats if (layer in self.channel_scales) != (layer in scaled)]
        if unfit:
            raise CalibrationError(
                f"The calibration ({self.algorithm}) was made for other formats of {some(unfit)}.",
                expected="the formats of this recipe: AWQ scales the inputs of NVFP4 layers only.",
                remedy=_REMEDY,
            )

    def check_algorithm(self, algorithm: Algorithm) -> None:
        """Raise :class:`CalibrationError` if it was made by another algorithm."""
        if self.algorithm != algorithm:
            raise CalibrationError(
                f"The calibration was made by the algorithm {self.algorithm!r}.",
                expected=f"{algorithm!r}.",
                remedy=_REMEDY,
            )


def awq_layers(algorithm: Algorithm, formats: Mapping[str, QuantizedFormat]) -> frozenset[str]:
    """The layers whose inputs are scaled: those in NVFP4, if it is AWQ.

    The relative error of an E4M3 weight does not depend on its scale.
    """
    if algorithm == "max":
        return frozenset()
    return frozenset(layer for layer, fmt in formats.items() if fmt == "nvfp4")


def encode(table: CalibrationTable) -> bytes:
    """A table as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n"


def read(path: Path) -> CalibrationTable:
    """Read a table; raises :class:`CalibrationError` if it is none."""
    return documents.read(
        path,
        documents.json,
        CalibrationTable,
        lambda reason: CalibrationError(
            f"{path} is not a calibration table: {reason}.",
            expected=f"JSON of the format {FORMAT!r}, version 1.",
            remedy=_REMEDY,
        ),
    )
