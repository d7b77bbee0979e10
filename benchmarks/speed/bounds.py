"""What a card could reach at best, beside what was measured, graph by graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sana_rt.benchmarks.speed.turn import GraphTime, TurnCard
from sana_rt.bundle import Bundle
from sana_rt.engines import cards, plan_table, profiles, roofline
from sana_rt.engines.cards import Card, Target
from sana_rt.engines.workloads import Workload
from sana_rt.manifest import Plan, Variant
from sana_rt.model_spec import Frozen, ModelSpec
from sana_rt.runtime.request import Request


class GraphShare(Frozen, frozen=True):
    """A graph's part, 0 to 1, of the time of all graphs, and the bound on one run of its plan.

    ``reached`` is the part of the bound's speed that was reached; it is None unless the plan
    itself was played on a card like the one that the bound is for.
    """

    time: GraphTime
    share: float
    bound_seconds: float | None
    reached: float | None


class BoundCard(Frozen, frozen=True):
    """The card that bounds are for, and whether it is the one that the plans were played on."""

    name: str
    target: str
    measured: bool


@dataclass(frozen=True)
class Limits:
    """The card that bounds plans, and the plans of one variant for it, by graph."""

    card: Card
    bound: BoundCard
    plans: Mapping[str, Plan]

    def reached(self, bound: float | None, seconds: float) -> float | None:
        """The part of the bound's speed that a time is; None where nothing says so."""
        return bound / seconds if self.bound.measured and bound and seconds else None


def limits(variant: Variant, *, plans: bool, played: TurnCard | None) -> Limits | None:
    """What bounds a variant that was ``played`` on a card; ``plans`` says whether its plans were.

    The card is that one, if its peaks are published here; else the one that stands for the
    target. None without plans for a target that has one.
    """
    target = _target(variant, None if played is None else played.compute_capability)
    if target is None:
        return None
    here = None if played is None else _published(played)
    is_here = here is not None and here.compute_capability == target.compute_capability
    card = here if here is not None and is_here else cards.card_of(target.name)
    bound = BoundCard(card.name, target.name, measured=plans and is_here)
    return Limits(card, bound, variant.plans[target.name])


def bounded(
    bundle: Bundle,
    name: str,
    request: Request,
    times: Sequence[GraphTime],
    limits: Limits | None,
) -> tuple[GraphShare, ...]:
    """The graphs of the variant ``name``, with the bounds of its plans.

    A plan for other sizes than the request's has no bound, nor has one for ranges, which tells
    neither bytes nor FLOPs.
    """
    variant, model = bundle.manifest.variant(name), bundle.manifest.model
    total = sum(time.seconds for time in times)
    found = []
    for time in times:
        bound = reached = None
        plan = None if limits is None else limits.plans.get(time.graph)
        if limits is not None and plan and _is_for(time.graph, plan, variant, model, request):
            bound = _bound(bundle, plan, limits.card)
            reached = limits.reached(bound, time.median_seconds)
        found.append(GraphShare(time, time.seconds / total, bound, reached))
    return tuple(found)


def _published(played: TurnCard) -> Card | None:
    """The card that the driver calls so, if its limits are published here."""
    same = (each for each in cards.CARDS.values() if played.name in each.driver_names)
    return next((one for one in same if one.compute_capability == played.compute_capability), None)


def _target(variant: Variant, compute_capability: str | None) -> Target | None:
    """The target whose plans bound a variant: this card's, else the first that has a card."""
    known = [cards.TARGETS[name] for name in variant.plans if name in cards.TARGETS]
    known = [target for target in known if target.card is not None]
    here = [target for target in known if target.compute_capability == compute_capability]
    return next(iter((*here, *known)), None)


def _is_for(graph: str, plan: Plan, variant: Variant, model: ModelSpec, request: Request) -> bool:
    workload = Workload(request.num_frames, request.height, request.width, batch=request.batch)
    entry = variant.graphs[graph]
    return plan.profile == profiles.profile(graph, entry, model, workload, variant.decoder)


def _bound(bundle: Bundle, plan: Plan, card: Card) -> float | None:
    totals = roofline.totals([plan_table.read(bundle.path(plan.log))], card)
    return None if totals.not_counted else totals.seconds
