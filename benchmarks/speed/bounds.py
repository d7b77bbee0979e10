"""What a card could reach at best, beside what was measured, graph by graph."""

from __future__ import annotations

from collections.abc import Sequence

from sana_rt.benchmarks.speed.turn import GraphTime
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
    """The card that bounds are for, and whether it is the one that was measured."""

    name: str
    target: str
    measured: bool


def bounded(
    bundle: Bundle,
    name: str,
    request: Request,
    times: Sequence[GraphTime],
    *,
    plans: bool,
    compute_capability: str | None,
) -> tuple[tuple[GraphShare, ...], BoundCard | None]:
    """The graphs of the variant ``name``, with the bounds of its plans.

    ``plans`` says whether these were played, ``compute_capability`` is that of the card in this
    machine. A plan for other sizes than the request's has no bound, nor has one for ranges,
    which tells neither bytes nor FLOPs.
    """
    variant = bundle.manifest.variant(name)
    target = _target(variant, compute_capability)
    if target is None:
        return tuple(_share(time, times, None, measured=False) for time in times), None
    card = cards.card_of(target.name)
    measured = plans and target.compute_capability == compute_capability
    listed = variant.plans[target.name]
    found = []
    for time in times:
        plan, bound = listed.get(time.graph), None
        if plan is not None and _is_for(time.graph, plan, variant, bundle.manifest.model, request):
            bound = _bound(bundle, plan, card)
        found.append(_share(time, times, bound, measured=measured))
    return tuple(found), BoundCard(card.name, target.name, measured)


def _target(variant: Variant, compute_capability: str | None) -> Target | None:
    """The target whose plans bound a variant: this card's, else the first that has a card."""
    known = [cards.TARGETS[name] for name in variant.plans if name in cards.TARGETS]
    known = [target for target in known if target.card is not None]
    here = [target for target in known if target.compute_capability == compute_capability]
    return next(iter((*here, *known)), None)


def _share(
    time: GraphTime, all_times: Sequence[GraphTime], bound: float | None, *, measured: bool
) -> GraphShare:
    reached = bound / time.median_seconds if measured and bound is not None else None
    return GraphShare(time, time.seconds / sum(each.seconds for each in all_times), bound, reached)


def _is_for(graph: str, plan: Plan, variant: Variant, model: ModelSpec, request: Request) -> bool:
    workload = Workload(request.num_frames, request.height, request.width, batch=request.batch)
    entry = variant.graphs[graph]
    return plan.profile == profiles.profile(graph, entry, model, workload, variant.decoder)


def _bound(bundle: Bundle, plan: Plan, card: Card) -> float | None:
    totals = roofline.totals([plan_table.read(bundle.path(plan.log))], card)
    return None if totals.not_counted else totals.seconds
