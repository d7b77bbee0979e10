"""Bounds beside times: of plans for the same sizes, and reached only on the same card."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from sana_rt.benchmarks.processes import Outcome
from sana_rt.benchmarks.speed import bench, bounds
from sana_rt.benchmarks.speed.turn import GraphKernels, GraphTime, KernelTime, TurnCard
from sana_rt.bundle import Bundle
from sana_rt.engines import builder, cards, plan_table, roofline, workloads
from sana_rt.engines.freshness import Settings
from sana_rt.engines.trt_api import TensorRT
from sana_rt.errors import BackendError
from sana_rt.runtime.request import for_model

TIMES = (GraphTime("block_00", 4, 3.0, 0.75), GraphTime("solver", 4, 1.0, 0.25))


@pytest.fixture(scope="module")
def bundle(block_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The blocks of a small model with plans for an RTX 50 card."""
    root = Path(shutil.copytree(block_bundle, tmp_path_factory.mktemp("bounds") / "bundle"))
    rtx, model = TensorRT("rtx"), Bundle.read(root).manifest.model
    workload = workloads.for_model(model)
    settings = Settings("bf16", rtx.target("sm120"), workload, "rtx", rtx.version)
    builder.build_variant(root, settings, rtx, lambda _: None)
    return Bundle.open(root)


RTX_5090 = TurnCard("NVIDIA GeForce RTX 5090", "12.0")


def found(
    bundle: Bundle,
    variant: str = "bf16",
    *,
    plans: bool = False,
    played: TurnCard | None = None,
    **options: object,
) -> tuple[tuple[bounds.GraphShare, ...], bounds.BoundCard | None]:
    request = for_model(bundle.manifest.model, {"prompt": "a", **options})
    limits = bounds.limits(bundle.manifest.variant(variant), plans=plans, played=played)
    shares = bounds.bounded(bundle, variant, request, TIMES, limits)
    return shares, None if limits is None else limits.bound


def test_the_bound_is_the_rooflines(bundle: Bundle) -> None:
    (block, solver), card = found(bundle)
    plan = bundle.manifest.variant("bf16").plans["sm120"]["block_00"]
    table = plan_table.read(bundle.path(plan.log))
    assert block.bound_seconds == roofline.totals([table], cards.card("rtx5090")).seconds > 0
    assert (block.share, solver.share) == (0.75, 0.25)
    assert solver.bound_seconds is None, "the bundle has no plan of it"
    assert card == bounds.BoundCard("GeForce RTX 5090", "sm120", measured=False)
    assert block.reached is None


def test_what_was_reached_is_told_of_the_plan_on_its_card(bundle: Bundle) -> None:
    (block, _), card = found(bundle, plans=True, played=RTX_5090)
    assert card is not None
    assert card.measured
    assert block.bound_seconds is not None
    assert block.reached == block.bound_seconds / 0.75


@pytest.mark.parametrize(
    ("plans", "name", "capability"),
    [
        (False, RTX_5090.name, "12.0"),
        (True, "NVIDIA GeForce RTX 4090", "8.9"),
        (True, "NVIDIA GeForce RTX 5090 Laptop GPU", "12.0"),  # whose peaks are others
        (True, "Simulated card", "12.0"),
    ],
)
def test_elsewhere_nothing_is_reached(
    bundle: Bundle, plans: bool, name: str, capability: str
) -> None:
    (block, _), card = found(bundle, plans=plans, played=TurnCard(name, capability))
    assert block.reached is None
    assert block.bound_seconds
    assert card == bounds.BoundCard("GeForce RTX 5090", "sm120", measured=False)


def test_the_bound_is_that_of_the_card_that_played(bundle: Bundle) -> None:
    (smaller, _), card = found(
        bundle, plans=True, played=TurnCard("NVIDIA GeForce RTX 5080", "12.0")
    )
    (block, _), _ = found(bundle)
    assert card == bounds.BoundCard("GeForce RTX 5080", "sm120", measured=True)
    assert smaller.bound_seconds is not None
    assert block.bound_seconds is not None
    assert smaller.bound_seconds > block.bound_seconds


def test_a_plan_for_other_sizes_has_no_bound(bundle: Bundle) -> None:
    (block, _), card = found(bundle, num_frames=9)
    assert block.bound_seconds is None
    assert card is not None


def test_without_plans_there_is_no_card(bundle: Bundle) -> None:
    (block, solver), card = found(bundle, variant="fp32")
    assert card is None
    assert block.bound_seconds is solver.bound_seconds is None


def details(bundle: Bundle, kernels: Any) -> bench.Details:
    """Of the variant ``bf16``, whose process for kernels returns or raises ``kernels``."""

    def run(function: str) -> Outcome:
        if isinstance(kernels, Exception) and function == "kernels":
            raise kernels
        return Outcome(msgspec.to_builtins(TIMES if function == "profile" else kernels), None)

    def call(function: str, _name: str) -> SimpleNamespace:
        return SimpleNamespace(run=lambda _report: run(function))

    requests = (for_model(bundle.manifest.model, {"prompt": "a"}),)
    setup: Any = SimpleNamespace(bundle=bundle, requests=requests, session_call=call)
    turn: Any = SimpleNamespace(plans=True, card=RTX_5090)
    found = bench._details(setup, "bf16", turn, lambda *_: None)
    assert [share.time for share in found.graphs] == list(TIMES), "all else is measured by then"
    return found


@pytest.mark.parametrize(
    ("kernels", "why"), [(BackendError("the profiler failed"), "profiler"), ([1], "Expected")]
)
def test_kernels_that_tell_no_times_end_no_benchmark(
    bundle: Bundle, kernels: Any, why: str
) -> None:
    found = details(bundle, kernels)
    assert found.kernels == ()
    assert found.graphs[0].bound_seconds
    assert why in bench._failures({"bf16": found})["kernels of bf16"]


def test_a_log_that_is_gone_ends_no_benchmark(bundle: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bundle.root, tmp_path / "bundle"))
    there = Bundle.open(root)
    there.path(there.manifest.variant("bf16").plans["sm120"]["block_00"].log).unlink()
    found = details(there, ())
    assert found.graphs[0].bound_seconds is None
    assert "block_00.log" in bench._failures({"bf16": found})["bounds of bf16"]


def test_kernels_of_a_graph_without_a_plan_are_unlisted(bundle: Bundle) -> None:
    times = (KernelTime("add", 0.5),)
    (solver,) = details(bundle, (GraphKernels("solver", 4, times),)).kernels
    assert (solver.kernels, solver.unlisted, solver.untimed) == ((), times, ())


@pytest.mark.parametrize(
    ("name", "capability", "card"),
    [
        ("NVIDIA H200", "9.0", "h200"),
        ("NVIDIA GeForce RTX 5090", "12.0", "rtx5090"),
        ("NVIDIA GeForce RTX 5080", "12.0", "rtx5080"),
        ("NVIDIA GeForce RTX 4090", "8.9", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", "8.6", "rtx3090"),
        ("NVIDIA H100 80GB HBM3", "9.0", None),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "12.0", None),
        ("NVIDIA GeForce RTX 4090 D", "8.9", None),
    ],
)
def test_a_card_is_known_by_what_the_driver_calls_it(
    name: str, capability: str, card: str | None
) -> None:
    """The names are those of public outputs of nvidia-smi."""
    found = bounds._published(TurnCard(name, capability))
    assert found is (None if card is None else cards.card(card))
