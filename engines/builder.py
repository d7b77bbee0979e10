"""From the graphs of a bundle to its plans, one at a time, so that a killed build can go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sana_rt.bundle import Bundle
from sana_rt.bundle_writer import publish
from sana_rt.engines import freshness, graph_types, plan_table
from sana_rt.engines.cards import Target
from sana_rt.engines.freshness import Settings
from sana_rt.engines.trt_api import (
    FLAVOURS,
    BuildLog,
    BuildRequest,
    RefusedNodesError,
    Shapes,
    TensorRT,
)
from sana_rt.errors import BuildError, TargetError, UnsupportedNodeError
from sana_rt.files import lock, write_bytes, writing
from sana_rt.manifest import DimRange, Graph, Plan
from sana_rt.tensors import TensorSpec, resolve

# Measured with TensorRT-RTX 1.7: its libraries and the graph; then the mapped weight file, one
# working copy, and what becomes of transposed weights. The plan itself is streamed to disk.
_BASE_BYTES: Final = 450 << 20
_WEIGHT_COPIES: Final = 3


@dataclass(frozen=True)
class BuildProgress:
    """Where a build is: graph ``index`` (from 0) of ``total``, in TensorRT's ``phase``."""

    graph: str
    index: int
    total: int
    phase: str


@dataclass(frozen=True)
class Built:
    """A plan on disk, the device memory it needs, and the seconds that building it took."""

    plan: Path
    log: Path
    activation_bytes: int
    weight_bytes: int
    seconds: float


def build_variant(
    root: Path, settings: Settings, tensorrt: TensorRT, report: Callable[[BuildProgress], None]
) -> dict[str, Built]:
    """Build the plans of a variant that are not current; each is listed as soon as it is done.

    Stale plans leave the manifest first, so that at every moment it lists whole files only:
    a build that was killed goes on where it stopped when it is started again.

    Returns:
        What was built, by graph name; empty if everything was current.

    Raises:
        LockedError: another process is writing the bundle.
        TargetError: a graph needs FP8 or FP4 and the target has none.
        UnsupportedNodeError: TensorRT cannot import a node.
        BuildError: anything else that TensorRT refuses.
        DiskFullError: the plans built so far stay listed.
    """
    with lock(root):
        bundle = Bundle.read(root)
        stale = [status.graph for status in freshness.survey(bundle, settings) if status.reasons]
        _check_sources(bundle, settings, stale)
        bundle = _forget(bundle, settings, stale)
        built = {}
        for index, name in enumerate(stale):

            def phase(text: str, name: str = name, index: int = index) -> None:
                report(BuildProgress(name, index, len(stale), text))

            built[name] = _build(bundle, settings, name, tensorrt, phase)
            bundle = _remember(bundle, settings, name, built[name])
        return built


def build_plan(
    request: BuildRequest, plan: Path, tensorrt: TensorRT, report: Callable[[str], None]
) -> Built:
    """Write the plan of a graph to ``plan`` and the complete log of its build beside it.

    If TensorRT refuses the graph, the log is written all the same and the error names it.
    """
    log, log_path = BuildLog(), plan.with_suffix(".log")
    started = time.monotonic()
    try:
        with writing(plan) as file:
            try:
                tensorrt.build(request, file.write, log, report)
            finally:
                # Bundles travel: what stands before the bundle's own paths is nobody's business.
                text = log.text.replace(f"{request.graph.parent}/", "")
                write_bytes(log_path, text.encode())
            table = plan_table.parse(text)
    except RefusedNodesError as error:
        raise _unsupported(request.graph, error, log_path) from error
    except BuildError as error:
        raise BuildError(
            error.happened, expected=error.expected, remedy=f"read the complete log in {log_path}."
        ) from error
    seconds = time.monotonic() - started
    return Built(plan, log_path, table.activation_bytes, table.weight_bytes, seconds)


def input_shapes(
    inputs: Iterable[TensorSpec], profile: Mapping[str, DimRange]
) -> dict[str, Shapes]:
    """Min, opt and max shape of every input."""
    low = {name: span.min for name, span in profile.items()}
    tuned = {name: span.opt for name, span in profile.items()}
    high = {name: span.max for name, span in profile.items()}
    return {
        tensor.name: (
            resolve(tensor.shape, low),
            resolve(tensor.shape, tuned),
            resolve(tensor.shape, high),
        )
        for tensor in inputs
    }


def check_target(name: str, path: Path, target: Target) -> None:
    """Raise :class:`TargetError` if the graph at ``path`` has types that the target has not."""
    needed = graph_types.low_precision(graph_types.load(path))
    missing = [dtype for dtype in needed if dtype not in target.dtypes]
    if missing:
        raise TargetError(
            f"{name} computes in {' and '.join(missing)} (the tensor {needed[missing[0]]!r} for "
            f"one), which {target.name} does not have.",
            expected=f"{', '.join(target.dtypes)} GEMMs for {target.name}.",
            remedy="build a variant without it, such as bf16, or for a target that has it (sm120).",
        )


def predicted_peak_bytes(bundle: Bundle, variant: str) -> int:
    """Host memory that building a variant's plans takes at most: that of its largest graph."""
    graphs = bundle.manifest.variant(variant).graphs.values()
    largest = max(sum(bundle.manifest.file(path).bytes for path in g.weights) for g in graphs)
    return _BASE_BYTES + _WEIGHT_COPIES * largest


def _build(
    bundle: Bundle,
    settings: Settings,
    name: str,
    tensorrt: TensorRT,
    report: Callable[[str], None],
) -> Built:
    graph = bundle.manifest.variant(settings.variant).graphs[name]
    shapes = input_shapes(graph.inputs, freshness.wanted(bundle, settings, name).profile)
    request = BuildRequest(bundle.path(graph.path), settings.target, shapes, settings.tf32)
    plan = bundle.root / settings.variant / settings.target.name / f"{name}.plan"
    try:
        return build_plan(request, plan, tensorrt, report)
    except BaseException:
        plan.unlink(missing_ok=True)  # it may have its name, and not be on the disk for certain
        raise


def _check_sources(bundle: Bundle, settings: Settings, names: Iterable[str]) -> None:
    """Refuse, before anything is built, files that changed and types that the card has not."""
    for name in names:
        graph = bundle.manifest.variant(settings.variant).graphs[name]
        bundle.check_graph(graph)
        check_target(name, bundle.path(graph.path), settings.target)


def _forget(bundle: Bundle, settings: Settings, names: Iterable[str]) -> Bundle:
    """Take the plans called ``names`` out of the manifest, then off the disk."""
    plans = bundle.manifest.variant(settings.variant).plans.get(settings.target.name, {})
    kept = {name: plan for name, plan in plans.items() if name not in names}
    if kept == plans:
        return bundle
    return _publish_plans(bundle, settings, kept)


def _remember(bundle: Bundle, settings: Settings, name: str, built: Built) -> Bundle:
    """List a plan that is complete on disk."""
    graph = bundle.manifest.variant(settings.variant).graphs[name]
    plan = _plan(bundle, settings, graph, name, built)
    plans = bundle.manifest.variant(settings.variant).plans.get(settings.target.name, {})
    return _publish_plans(bundle, settings, {**plans, name: plan})


def _plan(bundle: Bundle, settings: Settings, graph: Graph, name: str, built: Built) -> Plan:
    key = freshness.wanted(bundle, settings, name)
    return Plan(
        path=built.plan.relative_to(bundle.root).as_posix(),
        log=built.log.relative_to(bundle.root).as_posix(),
        flavour=settings.flavour,
        flavour_version=key.version,
        compute_capability=key.compute_capability,
        profile=key.profile,
        built_from=bundle.manifest.built_from(settings.variant, name),
        options=key.options,
        inputs=graph.inputs,
        outputs=graph.outputs,
        activation_bytes=built.activation_bytes,
        weight_bytes=built.weight_bytes,
        user_allocation=FLAVOURS[settings.flavour].user_allocation,
    )


def _publish_plans(bundle: Bundle, settings: Settings, plans: dict[str, Plan]) -> Bundle:
    """The bundle with these plans of the variant for the target."""
    manifest = bundle.manifest
    variant = manifest.variant(settings.variant)
    targets = {**variant.plans, settings.target.name: plans}
    if not plans:
        del targets[settings.target.name]
    changed = msgspec.structs.replace(variant, plans=targets)
    variants = {**manifest.variants, settings.variant: changed}
    after = msgspec.structs.replace(manifest, variants=variants)
    return publish(bundle.root, manifest, after)


def _unsupported(graph: Path, error: RefusedNodesError, log: Path) -> UnsupportedNodeError:
    nodes = ", ".join(
        f"{refusal.node!r} ({refusal.operator}, from the module "
        f"{graph_types.module_of(refusal.node)!r}: {refusal.reason})"
        for refusal in error.refusals
    )
    return UnsupportedNodeError(
        f"TensorRT cannot import these nodes of {graph.name}: {nodes}.",
        expected="operators that its ONNX parser supports.",
        remedy=f"write the module with other operators; the complete log is in {log}.",
    )
