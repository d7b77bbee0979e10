"""Times of kernels are joined with the rows of the layer table that have their names."""

from __future__ import annotations

import lzma
from dataclasses import replace
from pathlib import Path

import pytest

from sana_rt.benchmarks.speed import kernels
from sana_rt.benchmarks.speed.bounds import BoundCard, Limits
from sana_rt.benchmarks.speed.turn import GraphKernels, KernelTime
from sana_rt.engines import cards, plan_table, roofline
from sana_rt.engines.plan_table import PlanTable

LOGS = Path(__file__).parents[3] / "data/plan_logs"
CARD = cards.card("rtx5090")


def limits(*, measured: bool = True) -> Limits:
    return Limits(CARD, BoundCard(CARD.name, "sm120", measured), {})


@pytest.fixture(scope="module")
def table() -> PlanTable:
    """The table of a block of the released model."""
    return plan_table.parse(lzma.decompress((LOGS / "block_00.log.xz").read_bytes()).decode())


def times(table: PlanTable) -> GraphKernels:
    """Every row takes twice as long as its bound; those without one, a microsecond."""
    told = (
        KernelTime(kernel.name, 2 * roofline.work(kernel).seconds(CARD) or 1e-6)
        for kernel in table.kernels
    )
    return GraphKernels("block_00", 3, tuple(told))


def test_each_kernel_stands_beside_its_bound(table: PlanTable) -> None:
    found = kernels.shares(table, limits(), times(table))
    assert (found.graph, found.runs) == ("block_00", 3)
    assert [each.name for each in found.kernels] == [each.name for each in table.kernels]
    assert found.unlisted == found.untimed == ()
    bounds = [each.bound_seconds for each in found.kernels if each.bound_seconds is not None]
    assert sum(bounds) == pytest.approx(roofline.totals([table], CARD).seconds)
    reached = {each.reached for each in found.kernels if each.bound_seconds}
    assert reached == {0.5}
    assert {each.reached for each in found.kernels if not each.bound_seconds} == {None}
    gemms = [each for each in found.kernels if each.op_class == "gemm"]
    assert len(gemms) == 11
    assert {each.dtype for each in gemms} <= {"bfloat16", "float32"}


def test_on_another_card_nothing_is_reached(table: PlanTable) -> None:
    found = kernels.shares(table, limits(measured=False), times(table))
    assert {each.reached for each in found.kernels} == {None}
    assert any(each.bound_seconds for each in found.kernels)


def test_names_that_do_not_match_are_told_and_not_guessed(table: PlanTable) -> None:
    heaviest = max(table.kernels, key=lambda each: roofline.work(each).bytes).name
    renamed = tuple(
        replace_name(each) if each.name == heaviest else each for each in times(table).kernels
    )
    found = kernels.shares(table, limits(), GraphKernels("block_00", 3, renamed))
    assert [each.name for each in found.unlisted] == [f"{heaviest} [profile 0]"]
    assert found.untimed == (heaviest,)
    assert len(found.kernels) == len(table.kernels) - 1


def replace_name(time: KernelTime) -> KernelTime:
    return KernelTime(f"{time.name} [profile 0]", time.seconds)


def test_a_name_of_two_rows_is_that_of_none(table: PlanTable) -> None:
    row = table.kernels[4]
    twice = replace(table, kernels=(*table.kernels, row))
    found = kernels.shares(twice, limits(), times(table))
    assert [each.name for each in found.unlisted] == [row.name]
    assert found.untimed == ()


def test_dimensions_that_are_decided_at_run_time_have_no_bound(table: PlanTable) -> None:
    row = next(kernel for kernel in table.kernels if kernel.inputs)
    open_row = replace(row, inputs=(replace(row.inputs[0], shape=(-1, 4)), *row.inputs[1:]))
    found = kernels.shares(replace(table, kernels=(open_row,)), limits(), times(table))
    (share,) = found.kernels
    assert (share.bound_seconds, share.reached, share.op_class) == (None, None, None)
    assert share.seconds > 0
