"""A lower bound on the time of a whole job, from the compiled plans of full-width graphs.

No weights, no card: the graphs have random weights, TensorRT compiles them for the card, and
:mod:`sana_rt.engines.roofline` counts what the plans do. Blocks differ in nothing but the
formats that the recipe gives their layers: one plan stands for all blocks with the same formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sana_rt import geometry, graph_names
from sana_rt.benchmarks import bound_memory, random_bundle
from sana_rt.bundle import Bundle
from sana_rt.engines import builder, plan_table, profiles, roofline
from sana_rt.engines.cards import Card, Target
from sana_rt.engines.plan_table import PlanTable
from sana_rt.engines.roofline import KernelRow, Sums, Totals
from sana_rt.engines.trt_api import BuildRequest, TensorRT
from sana_rt.engines.workloads import Workload
from sana_rt.export import autoencoders
from sana_rt.graph_names import (
    DECODER,
    DECODER_FIRST,
    DECODER_WHOLE,
    FINAL_LAYER,
    PATCH_EMBED,
    PROMPT,
    ROPE,
    SOLVER,
    TEXT_ENCODER,
    TIMESTEP,
)
from sana_rt.manifest import DimRange
from sana_rt.model_spec import Frozen, ModelSpec
from sana_rt.quantize import recipe as recipes
from sana_rt.quantize import variant
from sana_rt.quantize.recipe import LoadedRecipe, Rule
from sana_rt.runtime.memory import MemoryPlan
from sana_rt.tensors import num_bytes

FP4: Final = "float4_e2m1"
_BLOCK: Final = graph_names.block(0)
_BLOCKS: Final = "blocks"
_NOTHING: Final = Totals((), 0)
_RULE: Final = (
    "a bound, not a time: the sum over kernels of max(FLOP / peak, bytes / bandwidth); a tensor "
    "that a kernel lists several times counts once, a slice as the whole tensor"
)
#: Latent frames of the LongSANA job: chunks of 40 video frames, one minute at 16 a second.
_STREAMED_CHUNKS: Final = 24


@dataclass(frozen=True)
class Schedule:
    """How often each part of a job runs."""

    prompts: int
    chunks: int
    steps: int  # of one chunk
    forwards: int  # of one chunk: its steps, and for block-causal models the committing pass
    latent_frames: int
    frames: int
    decoding: Mapping[str, int]  # runs of the decoder's graphs

    def runs(self) -> dict[str, int]:
        """Runs of each graph; of a block, those of one block."""
        steps, forwards = self.steps * self.chunks, self.forwards * self.chunks
        return {
            TEXT_ENCODER: self.prompts,
            PROMPT: 1,
            ROPE: self.chunks,
            TIMESTEP: forwards,
            PATCH_EMBED: forwards,
            _BLOCK: forwards,
            FINAL_LAYER: steps,
            SOLVER: steps,
            **self.decoding,
        }


class Row(Frozen, frozen=True):
    """A graph of the job: bounds on one run and on all, and what one run does.

    It is compiled once for all graphs in ``stands_for``, and is called by the first of them.
    """

    graph: str
    stands_for: tuple[str, ...]
    part: str
    layers: int  # that all run, one after another
    runs: int
    seconds_each: float
    seconds: float
    bytes_each: int
    flops_each: int
    activation_bytes: int
    weight_bytes: int
    note: str = ""


class BlockKernel(KernelRow, frozen=True):
    """A kernel of the block that is called ``graph`` in the report's rows."""

    graph: str


class PhaseRow(Frozen, frozen=True):
    """Device memory of one phase, by what it is for; ``needed`` is the sum."""

    phase: str
    bytes: dict[str, int]


class BoundReport(Frozen, frozen=True):
    """The bound on a job; every number of seconds is a bound.

    What is said of a block is the mean over all blocks.
    """

    model: str
    recipe: str
    device: str
    source: str
    tensorrt: str
    rule: str
    frames: int
    blocks_seconds: float
    total_seconds: float
    part_seconds: dict[str, float]
    frames_per_second: float
    blocks_frames_per_second: float
    bytes_per_block: int
    flops_per_block: int
    fp4_flop_share: float
    arena_bytes: int
    phases: tuple[PhaseRow, ...]
    other_decoding: tuple[PhaseRow, ...]  # the decoder where it decodes in another way
    together_bytes: int  # with all phases loaded
    rows: tuple[Row, ...]
    block_groups: tuple[Sums, ...]
    block_kernels: tuple[BlockKernel, ...]
    missing: tuple[str, ...]


def schedule(model: ModelSpec) -> Schedule:
    """The model's default job; of a block-causal model one minute, in chunks."""
    sampling = model.sampling
    prompts = geometry.batch_size(sampling.guidance_scale)
    if not model.transformer.causal:
        latent, steps = model.latent_frames(sampling.num_frames), sampling.num_inference_steps
        decoding = _decoding(model, latent)
        return Schedule(prompts, 1, steps, steps, latent, sampling.num_frames, decoding)
    streaming = model.chunking
    latent = _STREAMED_CHUNKS * streaming.chunk_frames
    steps = len(streaming.timesteps)
    frames = latent * model.vae.temporal_stride
    decoding = _decoding(model, latent)
    return Schedule(prompts, _STREAMED_CHUNKS, steps, steps + 1, latent, frames, decoding)


def _decoding(model: ModelSpec, latent_frames: int) -> dict[str, int]:
    """Runs of the decoder's graphs; a clip that can be decoded at once is."""
    autoencoder = autoencoders.find(model.vae)
    if autoencoder is None:
        return {DECODER_FIRST: 1, DECODER: latent_frames - 1}
    if any(graph.name == DECODER_WHOLE for graph in autoencoder.graphs("bfloat16")):
        return {DECODER_WHOLE: 1, DECODER_FIRST: 0, DECODER: 0}
    calls = sum(1 for _ in autoencoder.window().calls(range(latent_frames)))
    return {DECODER_FIRST: 1, DECODER: calls - 1}


def workload(model: ModelSpec) -> Workload:
    """What the plans are built for: the shapes of :func:`schedule`, all fixed."""
    sampling = model.sampling
    batch = geometry.batch_size(sampling.guidance_scale)
    return Workload(pass_frames(model), sampling.height, sampling.width, batch=batch, length=512)


def pass_frames(model: ModelSpec) -> int:
    """Video frames of one pass through the transformer: the clip's, or those of a first chunk."""
    if not model.transformer.causal:
        return model.sampling.num_frames
    return geometry.video_frames(model, model.chunking.chunk_frames)


@dataclass(frozen=True)
class BoundSetup:
    """What is bounded, and what it is built with."""

    model: ModelSpec
    recipe: LoadedRecipe
    card: Card
    tensorrt: TensorRT
    target: Target


def measure(setup: BoundSetup, folder: Path, report: Callable[[str], None]) -> BoundReport:
    """Export, compile and count the graphs of a model; ``folder`` keeps graphs and logs.

    Raises :class:`sana_rt.errors.RecipeError` if the recipe is for another model.
    """
    model, card = setup.model, setup.card
    bundle = random_bundle.write(folder / "bundle", model, lambda name: report(f"export {name}"))
    job = _Job.of(setup, bundle, folder)
    tables = dict(job.tables(report))
    totals = {name: roofline.totals([table], card) for name, table in tables.items()}
    by_graph = tuple(rows(model, job.blocks, tables, totals))
    parts: dict[str, float] = {}
    for row in by_graph:
        parts[row.part] = parts.get(row.part, 0.0) + row.seconds
    memory, *others = memory_plans(model, by_graph)
    block = roofline.mean([(totals[alike[0]], len(alike)) for alike in job.blocks])
    seconds, frames = sum(parts.values()), schedule(model).frames
    return BoundReport(
        model=model.name,
        recipe=setup.recipe.recipe.name,
        device=card.name,
        source=f"{card.source.document}, {card.source.url}",
        tensorrt=f"{setup.tensorrt.flavour} {setup.tensorrt.version} for {setup.target.name}",
        rule=_RULE,
        frames=frames,
        blocks_seconds=parts[_BLOCKS],
        total_seconds=seconds,
        part_seconds=parts,
        frames_per_second=frames / seconds,
        blocks_frames_per_second=frames / parts[_BLOCKS],
        bytes_per_block=block.bytes,
        flops_per_block=block.flops,
        fp4_flop_share=block.flop_shares().get(FP4, 0.0),
        arena_bytes=max(table.activation_bytes for table in tables.values()),
        rows=by_graph,
        block_groups=block.groups,
        block_kernels=tuple(
            BlockKernel(**msgspec.structs.asdict(row), graph=alike[0])
            for alike in job.blocks
            for row in roofline.kernel_rows(tables[alike[0]], card)
        ),
        phases=tuple(phase_rows(memory)),
        other_decoding=tuple(phase_rows(plan)[-1] for plan in others),
        together_bytes=memory.total_bytes,
        missing=() if DECODER in tables else (f"the {model.vae.kind} autoencoder",),
    )


@dataclass(frozen=True)
class _Job:
    """The graphs to compile; ``blocks`` in groups whose layers have the same formats."""

    setup: BoundSetup
    bundle: Bundle
    folder: Path
    rules: Mapping[str, Rule]  # of the whole model's layers
    blocks: tuple[tuple[str, ...], ...]

    @staticmethod
    def of(setup: BoundSetup, bundle: Bundle, folder: Path) -> _Job:
        """Read which layers there are, and what the recipe makes of them."""
        blocks = graph_names.blocks(setup.model.transformer.num_layers)
        layers = [
            f"{name}/{layer.node}"
            for name, each in variant.read_layers(bundle, random_bundle.VARIANT).items()
            for layer in each
        ]
        rules = recipes.resolve(setup.recipe.recipe, layers)
        groups = recipes.alike(rules, [layer for layer in layers if layer.split("/")[0] in blocks])
        return _Job(setup, bundle, folder, rules, groups)

    def tables(self, report: Callable[[str], None]) -> Iterator[tuple[str, PlanTable]]:
        """The compiled layer table of every graph; the plans themselves are not kept."""
        firsts = [alike[0] for alike in self.blocks]
        for name in self.bundle.manifest.variant(random_bundle.VARIANT).graphs:
            if name in firsts or not graph_names.is_block(name):
                report(f"build {name}")
                yield name, self._table(name)

    def _table(self, name: str) -> PlanTable:
        setup = self.setup
        graph = self.bundle.manifest.variant(random_bundle.VARIANT).graphs[name]
        plain = self.bundle.path(graph.path)
        path = quantized(self.rules, name, plain, self.folder / "quantized")
        builder.check_target(name, path, setup.target)
        # The two text encoders differ in nothing but the number of layers.
        kind = TEXT_ENCODER if name == random_bundle.TWO_LAYERS else name
        decoder = self.bundle.manifest.variant(random_bundle.VARIANT).decoder
        ranges = profiles.profile(kind, graph, setup.model, workload(setup.model), decoder)
        # a kernel of any size cannot be counted: windows are those within a clip
        spans = {dim: DimRange.fixed(span.max) for dim, span in ranges.items()}
        request = BuildRequest(path, setup.target, builder.input_shapes(graph.inputs, spans))
        plan = self.folder / "plans" / f"{name}.plan"
        built = builder.build_plan(request, plan, setup.tensorrt, lambda _phase: None)
        plan.unlink()
        return plan_table.read(built.log)


def quantized(rules: Mapping[str, Rule], name: str, graph: Path, folder: Path) -> Path:
    """The graph at ``graph`` with what ``rules`` say about the layers of the graph ``name``.

    ``rules`` are those of the whole model, see :func:`recipes.resolve`. Where nothing is
    quantized it is the same file.
    """
    formats = {
        layer: rule.format
        for layer, rule in rules.items()
        if layer.startswith(f"{name}/") and rule.format != "unquantized"
    }
    return variant.quantize_graph(name, graph, formats, folder) if formats else graph


def rows(
    model: ModelSpec,
    blocks: Sequence[tuple[str, ...]],
    tables: Mapping[str, PlanTable],
    totals: Mapping[str, Totals],
) -> Iterator[Row]:
    """Every graph of a model's job, from the plans of :mod:`random_bundle`'s graphs.

    ``blocks`` are in groups, of each of which the first has a plan.
    """
    two, text_layers = random_bundle.TWO_LAYERS, model.text.num_layers
    weights = {name: table.weight_bytes for name, table in tables.items()}
    weights[TEXT_ENCODER] += (text_layers - 1) * (weights[two] - weights[TEXT_ENCODER])
    for graph, runs in schedule(model).runs().items():
        for stands_for in blocks if graph == _BLOCK else [(graph,)]:
            name, layers = stands_for[0], len(stands_for)
            one, note = totals.get(name, _NOTHING), ""
            if name not in totals:
                note = f"no graph of the {model.vae.kind} autoencoder is exported: not counted"
            if name == TEXT_ENCODER:
                one = roofline.with_layers(one, totals[two], text_layers)
                note = f"{text_layers} layers, from plans of 1 and 2; a small vocabulary"
            yield Row(
                graph=name,
                stands_for=stands_for,
                part=_part(graph),
                layers=layers,
                runs=runs,
                seconds_each=one.seconds,
                seconds=one.seconds * runs * layers,
                bytes_each=one.bytes,
                flops_each=one.flops,
                activation_bytes=tables[name].activation_bytes if name in tables else 0,
                weight_bytes=weights.get(name, 0) * layers,
                note=note,
            )


def phase_rows(memory: MemoryPlan) -> list[PhaseRow]:
    """What each phase needs, by what it is for."""
    rows = memory.rows().items()
    return [
        PhaseRow(phase.name, {name: sizes[index] for name, sizes in rows})
        for index, phase in enumerate(memory.phases)
    ]


def memory_plans(model: ModelSpec, rows: Sequence[Row]) -> tuple[MemoryPlan, ...]:
    """The memory of the job for each way to decode, with the text encoder's whole vocabulary."""
    weights = {name: row.weight_bytes // row.layers for row in rows for name in row.stands_for}
    activations = {name: row.activation_bytes for row in rows for name in row.stands_for}
    words = model.text.vocab_size - random_bundle.VOCABULARY
    weights[TEXT_ENCODER] += words * model.text.hidden_size * num_bytes("bfloat16", (1,))
    return bound_memory.plans(model, weights, activations, pass_frames(model))


def _part(graph: str) -> str:
    """What a graph's row is counted under."""
    if graph_names.is_block(graph):
        return _BLOCKS
    role = graph_names.role(graph)
    assert role is not None
    return "rest of the transformer" if role.part == "transformer" else role.part
