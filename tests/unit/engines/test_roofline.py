"""FLOPs, bytes and bounds that are read off compiled layer tables."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from sana_rt.engines import cards, plan_table, roofline
from sana_rt.engines.plan_table import Kernel, PlanTable, Tensor
from sana_rt.engines.roofline import Sums, Totals, Work
from sana_rt.errors import PlanTableError, UsageError

LOGS = Path(__file__).parents[2] / "data/plan_logs"
RTX5090 = cards.card("rtx5090")

# FLOPs of SANA-Video's blocks at 480p (32,760 tokens), of one sample and all 20 blocks, by
# counting the published architecture: q, k, v; out; linear attention; cross q; cross out; cross
# attention; the 1x1 convolutions up and down; temporal convolution.
ARCHITECTURE_TFLOP = (19.725, 6.575, 0.663, 6.575, 6.575, 1.761, 39.450, 19.725, 19.725)
# The graph also multiplies the frame before the first by a tap (1/21 of a third of the temporal
# convolution), and the denominator of linear attention by a matrix of two columns, one unused.
ALSO_IN_THE_GRAPH = 0.003


def _table(name: str) -> PlanTable:
    return plan_table.parse(lzma.decompress((LOGS / f"{name}.log.xz").read_bytes()).decode())


def _kernel(kind: str, inputs: list[Tensor], outputs: list[Tensor], name: str = "k") -> Kernel:
    return Kernel(name, kind, tuple(inputs), (), tuple(outputs), "", 0, ())


def _bf16(name: str, *shape: int) -> Tensor:
    return Tensor(name, "bfloat16", shape)


def test_flops_of_a_block_are_those_of_the_architecture() -> None:
    counted = roofline.totals([_table("block_00")], RTX5090).flops
    expected = 2 * sum(ARCHITECTURE_TFLOP) / 20 * 1e12  # both halves of guidance, one block
    assert expected < counted < expected * (1 + ALSO_IN_THE_GRAPH)


def test_a_block_is_bounded_as_its_gemms_are_and_more() -> None:
    totals = roofline.totals([_table("block_00")], RTX5090)
    compute = totals.flops / RTX5090.peaks["bfloat16"]
    traffic = totals.bytes / RTX5090.bandwidth
    assert max(compute, traffic) < totals.seconds < compute + traffic
    assert totals.flop_shares() == {"bfloat16": pytest.approx(1)}
    assert totals.not_counted == 0


def test_fp4_gemms_count_as_fp4() -> None:
    totals = roofline.totals([_table("nvfp4_chain")], RTX5090)
    assert totals.flops == 2 * 2 * 1024 * 256 * 768
    assert totals.flop_shares("gemm") == {"float4_e2m1": 1.0}
    assert {group.op_class for group in totals.groups} == {"gemm", "quantize", "other"}


def test_every_convolution_of_the_autoencoder_is_counted() -> None:
    rows = roofline.rows(_table("vae_decoder"))
    convolutions = [row for row in rows if row.work.op_class == "convolution"]
    assert len(convolutions) == sum(row.kernel.kind == "correlation" for row in rows) > 30
    # The last stage: 96 channels, 3 taps over time stacked as channels, 3x3, 4 frames.
    last = next(row for row in rows if "decoder.up_blocks.3.resnets.2.conv2" in row.kernel.nodes)
    assert last.work.flops == 2 * (4 * 96 * 480 * 832) * (3 * 96 * 3 * 3)


def test_a_residual_of_the_rank_of_an_image_is_no_weight() -> None:
    kernel = _kernel(
        "correlation",
        [_bf16("x", 1, 384, 60, 104), _bf16("x2", 1, 384, 60, 104), _bf16("w", 384, 384, 1, 1)],
        [_bf16("y", 1, 384, 60, 104)],
    )
    assert roofline.work(kernel).flops == 2 * 384 * 384 * 60 * 104


def test_a_transposed_convolution() -> None:
    kernel = _kernel(
        "deconv",
        [_bf16("x", 4, 8, 16, 16), _bf16("w", 8, 16, 2, 2)],
        [_bf16("y", 4, 16, 32, 32)],
    )
    assert roofline.work(kernel).flops == 2 * (4 * 8 * 16 * 16) * (16 * 2 * 2)


def test_fused_attention_counts_both_products() -> None:
    kernel = _kernel(
        "kgen",
        [_bf16("q", 40, 1560, 112), _bf16("k", 40, 112, 300), _bf16("v", 40, 300, 112)],
        [_bf16("o", 40, 1560, 112)],
        name="_gemm_mha_v2_myl0_35",
    )
    assert roofline.work(kernel) == Work(
        "attention", 2 * 2 * 40 * 1560 * 300 * 112, 2 * 40 * 112 * 2 * (1560 + 300), "bfloat16"
    )


def test_operands_of_a_gemm_may_come_in_any_order() -> None:
    bias, a, b = _bf16("bias", 1, 64), _bf16("a", 7, 32), _bf16("b", 32, 64)
    for operands in ([a, b, bias], [bias, b, a], [b, bias, a]):
        one = roofline.work(_kernel("gemm", operands, [_bf16("y", 7, 64)]))
        assert (one.op_class, one.flops) == ("gemm", 2 * 7 * 32 * 64)


def test_what_a_kernel_lists_several_times_counts_once() -> None:
    half, whole = _bf16("x", 2, 50), _bf16("x", 2, 100)
    kernel = _kernel("kgen", [half, whole, half], [_bf16("y", 2, 100), _bf16("x", 2, 100)])
    read, written = 400, 400 + 400
    assert roofline.work(kernel).bytes == read + written


def test_kernels_of_unknown_kinds_count_with_their_bytes() -> None:
    kernel = _kernel("a_new_kind", [_bf16("x", 8)], [_bf16("y", 8)])
    assert roofline.work(kernel) == Work("other", 0, 32)


@pytest.mark.parametrize("kind", ["gemm", "runtime_fusion", "correlation"])
def test_work_that_is_not_understood_is_an_error(kind: str) -> None:
    kernel = _kernel(kind, [_bf16("a", 7, 32), _bf16("b", 31, 64)], [_bf16("y", 7, 64)])
    with pytest.raises(PlanTableError, match="cannot be counted"):
        roofline.work(kernel)


def test_dimensions_of_run_time_are_said_to_be_not_counted() -> None:
    dynamic = _kernel("gemm", [_bf16("a", -1, 32), _bf16("b", 32, 64)], [_bf16("y", -1, 64)])
    fixed = _kernel("kgen", [_bf16("a", 8)], [])
    totals = roofline.totals([PlanTable((dynamic, fixed), 0, 0)], RTX5090)
    assert (totals.not_counted, totals.bytes) == (1, 16)


def test_layers_add_up() -> None:
    """26 layers, of which the first also brings an embedding, from plans of one and of two."""
    first, more = Sums("gemm", "bfloat16", 100, 20, 0.5), Sums("gemm", "bfloat16", 70, 9, 0.25)
    rest = Sums("other", None, 0, 5, 0.125)
    one = Totals((first, rest), 0)
    two = Totals((roofline.combined(first, more), roofline.combined(rest, rest)), 0)
    many = roofline.with_layers(one, two, 26)
    assert (many.flops, many.bytes) == (100 + 25 * 70, 20 + 25 * 9 + 26 * 5)
    assert many.seconds == 0.5 + 25 * 0.25 + 26 * 0.125


def test_the_mean_of_plans_weighs_them() -> None:
    fp4 = Sums("gemm", "float4_e2m1", 300, 30, 3.0)
    fp8 = Sums("gemm", "float8_e4m3", 700, 50, 6.0)
    rest = Sums("other", None, 0, 8, 1.0)
    both = roofline.mean([(Totals((fp8, rest), 1), 1), (Totals((rest, fp4), 0), 3)])
    assert {each.name: each for each in both.groups} == {
        "gemm float4_e2m1": Sums("gemm", "float4_e2m1", 225, 22, 2.25),  # of 22.5 bytes
        "gemm float8_e4m3": Sums("gemm", "float8_e4m3", 175, 12, 1.5),  # of 12.5 bytes
        "other": rest,
    }
    assert both.flop_shares() == {"float8_e4m3": 175 / 400, "float4_e2m1": 225 / 400}
    assert both.not_counted == 1


def test_the_larger_of_compute_and_traffic_bounds_a_kernel() -> None:
    assert Work("gemm", int(209.5e9), 8, "bfloat16").seconds(RTX5090) == pytest.approx(1e-3)
    assert Work("gemm", 8, int(1.792e9), "bfloat16").seconds(RTX5090) == pytest.approx(1e-3)


def test_no_bound_for_types_that_the_card_has_not() -> None:
    with pytest.raises(UsageError, match="GeForce RTX 4090 has no peak for float4_e2m1"):
        Work("gemm", 1, 1, "float4_e2m1").seconds(cards.card("rtx4090"))
