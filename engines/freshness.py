"""Which plans are current, and why the others are stale.

A plan is current while everything that it was built from is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sana_rt import freshness
from sana_rt.bundle import Bundle
from sana_rt.engines import profiles
from sana_rt.engines.cards import Target
from sana_rt.engines.trt_api import Flavour
from sana_rt.engines.workloads import Workload
from sana_rt.manifest import DimRange, Plan, Quantization


@dataclass(frozen=True)
class Settings:
    """What a build of a variant's plans is asked for."""

    variant: str
    target: Target
    workload: Workload
    flavour: Flavour
    flavour_version: str
    tf32: bool = False

    @property
    def options(self) -> dict[str, str]:
        """The options as the manifest records them."""
        return {"aux_streams": "0", "tf32": str(self.tf32).lower()}


@dataclass(frozen=True)
class PlanKey:
    """All that decides what a plan is; each field is a reason of its own to build again."""

    graph: str = field(metadata={"opaque": True})
    weights: tuple[str, ...] = field(metadata={"opaque": True})
    quantization: Quantization | None
    flavour: str
    version: str
    compute_capability: str
    profile: dict[str, DimRange]
    options: dict[str, str]


@dataclass(frozen=True)
class PlanStatus:
    """Whether the plan of a graph is current; the ``reasons`` why it is stale, if it is."""

    graph: str
    reasons: tuple[str, ...]

    @property
    def is_current(self) -> bool:
        """Whether it would not be built again."""
        return not self.reasons


def survey(bundle: Bundle, settings: Settings) -> tuple[PlanStatus, ...]:
    """The status of every graph's plan, in the order of the manifest; files are hashed."""
    variant = bundle.manifest.variant(settings.variant)
    plans = variant.plans.get(settings.target.name, {})
    return tuple(
        PlanStatus(name, tuple(_reasons(bundle, plans.get(name), wanted(bundle, settings, name))))
        for name in variant.graphs
    )


def wanted(bundle: Bundle, settings: Settings, name: str) -> PlanKey:
    """The key of the plan that a build of the graph called ``name`` would make."""
    variant = bundle.manifest.variant(settings.variant)
    source = bundle.manifest.built_from(settings.variant, name)
    return PlanKey(
        graph=source.graph,
        weights=source.weights,
        quantization=source.quantization,
        flavour=settings.flavour,
        version=settings.flavour_version,
        compute_capability=settings.target.compute_capability,
        profile=profiles.profile(
            name,
            variant.graphs[name],
            bundle.manifest.model,
            settings.workload,
            variant.decoder,
        ),
        options=settings.options,
    )


def recorded(plan: Plan) -> PlanKey:
    """The key that a plan was built under."""
    return PlanKey(
        graph=plan.built_from.graph,
        weights=plan.built_from.weights,
        quantization=plan.built_from.quantization,
        flavour=plan.flavour,
        version=plan.flavour_version,
        compute_capability=plan.compute_capability,
        profile=plan.profile,
        options=plan.options,
    )


def _reasons(bundle: Bundle, plan: Plan | None, key: PlanKey) -> Iterator[str]:
    if plan is None:
        yield "never built"
        return
    yield from freshness.differences(recorded(plan), key)
    yield from freshness.damaged(bundle, (plan.path, plan.log))
