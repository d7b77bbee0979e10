"""``sana-rt bound``: the sums over a job, on small graphs in the place of full-width ones."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from sana_rt import bundle as bundles
from sana_rt.benchmarks import bound, random_bundle
from sana_rt.benchmarks.bound import BoundReport, BoundSetup
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.engines import cards
from sana_rt.engines.plan_table import PlanTable
from sana_rt.engines.roofline import Totals
from sana_rt.engines.trt_api import TensorRT
from sana_rt.errors import RecipeError
from sana_rt.export.seeded import SMALL
from sana_rt.graph_names import TEXT_ENCODER
from sana_rt.model_spec import PRESETS
from sana_rt.quantize import recipe as recipes

pytest.importorskip("tensorrt_rtx")

#: Plans of every graph but the autoencoder's, which do nothing.
TABLES = {
    name: PlanTable((), 0, 0)
    for name in (*bound.schedule(SMALL).runs(), random_bundle.TWO_LAYERS)
    if not name.startswith("vae_")
}
TOTALS = dict.fromkeys(TABLES, Totals((), 0))
KEYS = {
    "blocks_seconds",
    "total_seconds",
    "bytes_per_block",
    "flops_per_block",
    "fp4_flop_share",
    "frames_per_second",
    "arena_bytes",
    "rows",
}


def bounded(small_bundle: Path, recipe: str, folder: Path) -> BoundReport:
    """The bound for the small model, whose graphs are those of the small bundle."""
    bundle = Bundle.open(small_bundle)
    graphs = dict(bundle.manifest.variant("fp32").graphs)
    graphs[random_bundle.TWO_LAYERS] = graphs[TEXT_ENCODER]
    del graphs["vae_encoder"]
    variant = msgspec.structs.replace(bundle.manifest.variant("fp32"), graphs=graphs)
    manifest = msgspec.structs.replace(bundle.manifest, variants={random_bundle.VARIANT: variant})
    rtx = TensorRT("rtx")
    loaded = recipes.load(recipe) if recipe else recipes.UNQUANTIZED
    setup = BoundSetup(SMALL, loaded, cards.card("rtx5090"), rtx, rtx.target("sm120"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_bundle, "write", lambda *_: bundles.Bundle(bundle.root, manifest))
        return bound.measure(setup, folder, lambda _: None)


@pytest.fixture(scope="module")
def report(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> BoundReport:
    return bounded(small_bundle, "", tmp_path_factory.mktemp("bound"))


@pytest.fixture(scope="module")
def mixed(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> BoundReport:
    """With a recipe whose first rules are for the last three of the four blocks only."""
    return bounded(small_bundle, "mixed", tmp_path_factory.mktemp("mixed"))


def test_rows_sum_to_the_job(report: BoundReport) -> None:
    rows = {row.graph: row for row in report.rows}
    steps = SMALL.sampling.num_inference_steps
    block = rows["block_00"]
    assert (block.layers, block.runs) == (SMALL.transformer.num_layers, steps)
    assert report.blocks_seconds == block.seconds_each * SMALL.transformer.num_layers * steps
    assert report.total_seconds == pytest.approx(sum(row.seconds for row in report.rows))
    assert block.stands_for == ("block_00", "block_01", "block_02", "block_03")
    assert set(report.part_seconds) == {
        "blocks",
        "rest of the transformer",
        "text",
        "autoencoder",
    }
    assert report.frames_per_second == SMALL.sampling.num_frames / report.total_seconds
    assert report.bytes_per_block == block.bytes_each
    assert report.flops_per_block == block.flops_each
    assert report.arena_bytes == max(row.activation_bytes for row in report.rows)
    assert report.missing == ()


def test_memory_is_planned_from_the_compiled_plans(report: BoundReport) -> None:
    """Weights and activations are the rows', with the vocabulary that the plans leave out."""
    phases = {phase.phase: phase.bytes for phase in report.phases}
    assert list(phases) == ["text encoder", "transformer", "decoder"]
    rows = {row.graph: row for row in report.rows}
    decoders = [rows[name] for name in ("vae_decoder_first", "vae_decoder")]
    assert phases["decoder"]["weights"] == sum(row.weight_bytes for row in decoders)
    assert phases["decoder"]["activations"] == max(row.activation_bytes for row in decoders)
    words = SMALL.text.vocab_size - random_bundle.VOCABULARY
    vocabulary = words * SMALL.text.hidden_size * 2
    assert phases["text encoder"]["weights"] == rows["text_encoder"].weight_bytes + vocabulary
    blocks = [row for row in report.rows if row.graph.startswith("block_")]
    assert phases["transformer"]["weights"] > sum(row.weight_bytes for row in blocks)
    for sizes in phases.values():
        summed = [size for name, size in sizes.items() if not name.startswith(("needed", "stag"))]
        assert sum(summed) == sizes["needed"]
    assert report.together_bytes > max(sizes["needed"] for sizes in phases.values())


def test_blocks_that_differ_are_compiled_one_by_one_and_weighted(mixed: BoundReport) -> None:
    shallow, deep = (row for row in mixed.rows if row.part == "blocks")
    assert (shallow.graph, shallow.stands_for) == ("block_00", ("block_00",))
    assert (deep.graph, deep.stands_for) == ("block_01", ("block_01", "block_02", "block_03"))
    assert (shallow.layers, deep.layers) == (1, 3)
    assert shallow.runs == deep.runs == SMALL.sampling.num_inference_steps
    each = shallow.seconds_each + 3 * deep.seconds_each
    assert mixed.blocks_seconds == pytest.approx(shallow.runs * each)
    assert mixed.flops_per_block == pytest.approx((shallow.flops_each + 3 * deep.flops_each) / 4)
    # Each class of kernels is rounded to whole bytes.
    bytes_per_block = (shallow.bytes_each + 3 * deep.bytes_each) / 4
    assert mixed.bytes_per_block == pytest.approx(bytes_per_block, abs=len(mixed.block_groups))
    assert shallow.bytes_each != deep.bytes_each


def test_the_share_in_fp4_is_that_of_all_blocks(mixed: BoundReport) -> None:
    flops = {"block_00": 0, "block_01": 0}
    for row in mixed.block_kernels:
        flops[row.graph] += row.flops if row.dtype == bound.FP4 else 0
    assert 0 < flops["block_00"] < flops["block_01"], "the feed-forward is FP8 in the first"
    wanted = (flops["block_00"] + 3 * flops["block_01"]) / (4 * mixed.flops_per_block)
    assert mixed.fp4_flop_share == pytest.approx(wanted, rel=1e-6)  # FLOPs are rounded, too


def test_an_autoencoder_that_is_not_here_is_said_to_be_missing() -> None:
    model = PRESETS["sana-video-2b-720p-dcaev"]
    rows = {row.graph: row for row in bound.rows(model, [("block_00",)], TABLES, TOTALS)}
    assert "dcae autoencoder is exported: not counted" in rows["vae_decoder"].note
    assert rows["vae_decoder"].seconds == 0


def test_kernels_of_the_block_are_the_block(report: BoundReport) -> None:
    assert sum(row.bytes for row in report.block_kernels) == report.bytes_per_block
    assert sum(row.flops for row in report.block_kernels) == report.flops_per_block
    (block,) = (row for row in report.rows if row.graph == "block_00")
    seconds = [row.seconds for row in report.block_kernels]
    assert sum(seconds) == pytest.approx(block.seconds_each)
    assert seconds == sorted(seconds, reverse=True)


def test_both_prompts_are_encoded(report: BoundReport) -> None:
    (text,) = (row for row in report.rows if row.graph == TEXT_ENCODER)
    assert text.runs == 2
    assert "2 layers, from plans of 1 and 2" in text.note
    assert text.seconds == 2 * text.seconds_each > 0


def test_the_command_prints_the_report(
    report: BoundReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[BoundSetup] = []
    monkeypatch.setattr(bound, "measure", lambda setup, *_: asked.append(setup) or report)
    for model in ("sana-video-2b-720p-dcaev", "2b-720p-dcaev"):
        arguments = ["bound", "--model", model, "--device", "rtx5080"]
        result = CliRunner().invoke(cli, [*arguments, "--json"])
        assert set(json.loads(result.stdout)) >= KEYS
        assert asked[-1].model is PRESETS["sana-video-2b-720p-dcaev"]
        assert asked[-1].card.name == "GeForce RTX 5080"
        assert asked[-1].recipe == recipes.UNQUANTIZED
    shown = CliRunner().invoke(cli, arguments).stdout
    assert "a bound, not a time" in shown
    assert "NVIDIA RTX Blackwell GPU Architecture" in shown
    assert " at least" in shown
    assert "heaviest kernels of block_00" in shown


def test_the_command_shows_every_kind_of_block(
    mixed: BoundReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "measure", lambda *_: mixed)
    shown = CliRunner().invoke(cli, ["bound", "--model", "2b-480p", "--recipe", "mixed"]).stdout
    assert "heaviest kernels of block_00" in shown
    assert "heaviest kernels of block_01" in shown


def test_a_recipe_for_another_model_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    rule = 'layers = ["block_*/mlp.fc1"]\nformat = "nvfp4"\nreason = ""\nsource = ""\n'
    path.write_text(f'name = "other"\ndescription = ""\n[[rules]]\n{rule}')
    with pytest.raises(RecipeError, match="matches no layer"):
        bounded(small_bundle, str(path), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "2b-1080p"), "sana-video-2b-480p"),
        (("--model", "2b-480p", "--recipe", "secret"), "max"),
        (("--model", "2b-480p", "--device", "rtx9999"), "rtx5090"),
        (("--model", "2b-480p", "--device", "h200"), "builds no plans"),
    ],
)
def test_what_cannot_be_bounded_is_refused(arguments: tuple[str, ...], message: str) -> None:
    refused = CliRunner().invoke(cli, ["bound", *arguments])
    assert refused.exit_code == 2
    assert message in refused.stderr


def test_jobs_of_the_released_models() -> None:
    clip = bound.schedule(PRESETS["sana-video-2b-480p"])
    assert (clip.frames, clip.latent_frames, clip.prompts) == (81, 21, 2)
    assert clip.runs()["block_00"] == clip.runs()["solver"] == 50
    assert clip.runs()["vae_decoder"] == 20
    at_once = bound.schedule(PRESETS["sana-video-2b-720p"]).runs()
    assert (at_once["vae_decoder_whole"], at_once["vae_decoder"]) == (1, 0)
    minute = bound.schedule(PRESETS["longsana-2b-480p"])
    assert (minute.frames, minute.latent_frames, minute.prompts) == (960, 240, 1)
    assert minute.runs()["block_00"] == 24 * 5
    assert minute.runs()["solver"] == 24 * 4
    assert minute.runs()["vae_decoder"] == 239
    assert bound.workload(PRESETS["longsana-2b-480p"]).num_frames == 37  # 10 latent frames
