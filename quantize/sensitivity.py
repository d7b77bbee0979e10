"""How much each layer loses when it alone is quantized, and a recipe that follows from it.

A layer is quantized by itself in one block, with all the rest in float32. Its own output tells
how large the error is where it is made; the velocity tells what is left of it at the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from sana_rt import graph_names
from sana_rt.bundle import Bundle
from sana_rt.errors import UsageError
from sana_rt.model_spec import Frozen
from sana_rt.progress import ReportProgress, silent
from sana_rt.quantize import graph_file, quantized_layer, rewrite
from sana_rt.quantize.calibration_table import CalibrationTable
from sana_rt.quantize.layers import Layer, layers_of
from sana_rt.quantize.passes import Array, Pass
from sana_rt.quantize.quantized_layer import QuantizedFormat
from sana_rt.quantize.recipe import Recipe, Rule

#: dB; what is shown for a layer that loses nothing, such as one whose input is zero.
LOSSLESS: Final = 200.0
_TOKENS: Final = "tokens_out"
_ROUNDING: Final = 1e-9  # of a sum of shares


class Entry(Frozen, frozen=True):
    """A layer, quantized alone, at one noise level.

    ``sqnr`` (dB) and ``cosine`` compare its output with the float32 one; ``velocity_error`` is
    the norm of the velocity's change over its norm. ``share`` is the layer's part of the FLOPs
    of all layers here.
    """

    layer: str
    timestep: float
    sqnr: float
    cosine: float
    velocity_error: float
    share: float

    @property
    def block(self) -> str:
        """The graph."""
        return self.layer.split("/")[0]

    @property
    def group(self) -> str:
        """The layer's name within its block."""
        return self.layer.split("/")[1]


class Sensitivity(Frozen, frozen=True):
    """All entries, and what they were measured on."""

    checkpoint: str
    prompts: str
    format: QuantizedFormat
    passes: int
    entries: tuple[Entry, ...]

    def velocity_errors(self) -> dict[str, float]:
        """The mean over timesteps of the velocity's error, by layer."""
        names = dict.fromkeys(entry.layer for entry in self.entries)
        return {
            name: float(np.mean([e.velocity_error for e in self.entries if e.layer == name]))
            for name in names
        }


def measure(
    bundle: Bundle,
    variant: str,
    passes: Sequence[Pass],
    table: CalibrationTable,
    *,
    fmt: QuantizedFormat = "nvfp4",
    progress: ReportProgress = silent,
) -> Sensitivity:
    """Quantize every layer of every block by itself, on recorded passes.

    Two uses of one weight are quantized together; layers whose shape does not allow the format
    are left out. The time grows with the square of the number
    of blocks: behind every quantized layer, the rest of the transformer runs.
    """
    chain = _Chain.open(bundle, variant, passes)
    layers = [
        layer
        for block in chain.blocks
        for layer in block.layers
        if not layer.is_second_use and quantized_layer.fits(layer, fmt)
    ]
    flops = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    entries: list[Entry] = []
    for index, block in enumerate(chain.blocks):
        plain = block.outputs(chain.before[index])
        for layer in (layer for layer in layers if layer.graph == graph_names.block(block.index)):
            progress(layer.name, layers.index(layer), len(layers))
            share = layer.shape[0] * layer.shape[1] / flops
            session = block.quantized(layer, table, fmt)
            for number, each in enumerate(chain.before[index]):
                tokens, output = session.run([_TOKENS, layer.output], each.of_block(index))
                sqnr, cosine = _compare(output, plain[number][layer.output])
                error = chain.velocity_error(index, number, tokens)
                entries.append(Entry(layer.name, each.timestep, sqnr, cosine, error, share))
    return Sensitivity(table.checkpoint, table.prompts, fmt, len(passes), tuple(entries))


@dataclass(frozen=True, eq=False)
class _Block:
    """A block's graph, and the float32 session of it."""

    index: int
    path: Path
    layers: tuple[Layer, ...]
    session: ort.InferenceSession

    @staticmethod
    def open(index: int, path: Path) -> _Block:
        model = graph_file.read(path)
        layers = layers_of(graph_names.block(index), model)
        watched = [layer.output for layer in layers]
        return _Block(index, path, layers, graph_file.session(model, path.parent, watched))

    def tokens(self, each: Pass) -> Array:
        """The tokens behind the block."""
        tokens: Array = self.session.run([_TOKENS], each.of_block(self.index))[0]
        return tokens

    def outputs(self, passes: Sequence[Pass]) -> list[dict[str, Array]]:
        """The outputs of the layers in each pass."""
        names = [layer.output for layer in self.layers if not layer.is_second_use]
        return [
            dict(zip(names, self.session.run(names, each.of_block(self.index)), strict=True))
            for each in passes
        ]

    def quantized(
        self, layer: Layer, table: CalibrationTable, fmt: QuantizedFormat
    ) -> ort.InferenceSession:
        """The block with ``layer`` alone quantized."""
        model = graph_file.read(self.path)
        made = {}
        for each in self.layers:
            if each.node in (layer.node, f"{layer.node}.1"):
                weight = graph_file.value(model, each.weight, self.path.parent)
                made[each.name] = quantized_layer.quantize(each, weight, fmt, table.amax[each.name])
        emulated = rewrite.emulation(model, self.layers, made)
        return graph_file.session(emulated, self.path.parent, [layer.output])


@dataclass(frozen=True, eq=False)
class _Chain:
    """The transformer from its first block on, and what it makes of every pass in float32."""

    blocks: tuple[_Block, ...]
    final: ort.InferenceSession
    before: tuple[tuple[Pass, ...], ...]  # by block: the passes as it sees them
    velocities: tuple[Array, ...]

    @staticmethod
    def open(bundle: Bundle, variant: str, passes: Sequence[Pass]) -> _Chain:
        graphs = bundle.manifest.variant(variant).graphs
        names = graph_names.blocks(len(passes[0].text))
        blocks = tuple(
            _Block.open(index, bundle.path(graphs[name].path)) for index, name in enumerate(names)
        )
        path = bundle.path(graphs[graph_names.FINAL_LAYER].path)
        final = graph_file.session(graph_file.read(path), path.parent)
        before = [tuple(passes)]
        for block in blocks:
            before.append(tuple(_behind(each, block.tokens(each)) for each in before[-1]))
        velocities = tuple(_velocity(final, each) for each in before.pop())
        return _Chain(blocks, final, tuple(before), velocities)

    def velocity_error(self, index: int, number: int, tokens: Array) -> float:
        """How far the velocity of a pass moves if ``tokens`` come out of the block ``index``."""
        each = _behind(self.before[index][number], tokens)
        for block in self.blocks[index + 1 :]:
            each = _behind(each, block.tokens(each))
        wanted = self.velocities[number]
        return float(np.linalg.norm(_velocity(self.final, each) - wanted) / np.linalg.norm(wanted))


def _behind(each: Pass, tokens: Array) -> Pass:
    return replace(each, inputs={**each.inputs, "tokens": tokens})


def _velocity(final: ort.InferenceSession, each: Pass) -> Array:
    feeds = {"tokens": each.inputs["tokens"], "embedding": each.embedding}
    velocity: Array = final.run(["velocity"], feeds)[0]
    return velocity


def _compare(output: Array, plain: Array) -> tuple[float, float]:
    """SQNR in dB, and the cosine between a layer's output and the float32 one."""
    ours, wanted = output.astype(np.float64), plain.astype(np.float64)
    power, lost = np.square(wanted).sum(), np.square(ours - wanted).sum()
    if lost == 0:
        return LOSSLESS, 1.0
    cosine = (ours * wanted).sum() / np.sqrt(power * np.square(ours).sum())
    return min(LOSSLESS, float(10 * np.log10(power / lost))), float(cosine)


def check_share(share: float) -> None:
    """Raise :class:`UsageError` unless ``share`` can be one of FLOPs in FP4."""
    if not 0 < share <= 1:
        raise UsageError(f"The share of FLOPs in FP4 is {share}.", expected="above 0, up to 1.")


def propose(found: Sensitivity, share: float, name: str) -> Recipe:
    """A recipe with at least ``share`` of the layers' FLOPs in NVFP4 and the rest in FP8.

    Layers become NVFP4 in the order of what the velocity loses for each FLOP that they carry.
    """
    check_share(share)
    errors = found.velocity_errors()
    shares = {entry.layer: entry.share for entry in found.entries}
    chosen: list[str] = []
    for layer in sorted(errors, key=lambda each: errors[each] / shares[each]):
        if sum(shares[each] for each in chosen) >= share - _ROUNDING:
            break
        chosen.append(layer)
    source = f"sana-rt sensitivity: checkpoint {found.checkpoint[:12]}, {found.passes} passes"
    rest = [layer for layer in errors if layer not in chosen]
    rules = [
        Rule(
            _patterns(chosen),
            "nvfp4",
            f"of all layers these lose least a FLOP; they carry {share:.0%} of the FLOPs",
            source,
        )
    ]
    if rest:
        reason = "of all layers these lose most a FLOP in NVFP4"
        rules.append(Rule(_patterns(rest), "fp8", reason, source))
    return Recipe(
        name, f"At least {share:.0%} of the FLOPs in NVFP4, the rest in FP8.", tuple(rules)
    )


def to_toml(recipe: Recipe) -> str:
    """The recipe as the file that :func:`sana_rt.quantize.recipe.load` reads."""
    lines = [f"name = {_quoted(recipe.name)}", f"description = {_quoted(recipe.description)}"]
    for rule in recipe.rules:
        layers = "".join(f"  {_quoted(layer)},\n" for layer in rule.layers)
        lines += ["", "[[rules]]", f"layers = [\n{layers}]", f"format = {_quoted(rule.format)}"]
        lines += [f"reason = {_quoted(rule.reason)}", f"source = {_quoted(rule.source)}"]
    return "\n".join(lines) + "\n"


def _patterns(layers: Sequence[str]) -> tuple[str, ...]:
    """Names that are patterns for themselves, and for the second use of their weights."""
    return tuple(f"{layer}*" if layer.endswith("conv_temp") else layer for layer in layers)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a TOML string
