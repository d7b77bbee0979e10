"""``sana-rt bench`` and ``sana-rt compare`` on the small bundle: what is measured is what ran."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner, Result

from sana_rt import bundle as bundles
from sana_rt.benchmarks.speed import report as reports
from sana_rt.benchmarks.speed.report import Report
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.manifest import Quantization

replace = msgspec.structs.replace
TWIN, FP4, WITHOUT_DECODER = "twin", "nvfp4-max", "latents"
DECODING = ("vae_decoder_first", "vae_decoder")


@pytest.fixture(scope="module")
def root(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle with a twin of its variant, and two that a CPU plays otherwise or not."""
    root = Path(shutil.copytree(small_bundle, tmp_path_factory.mktemp("bench") / "bundle"))
    manifest = Bundle.open(root).manifest
    one = manifest.variant("fp32")
    latents = {name: graph for name, graph in one.graphs.items() if name not in DECODING}
    others = {
        TWIN: one,
        FP4: replace(one, quantization=Quantization("max", "0" * 64, "device")),
        WITHOUT_DECODER: replace(one, graphs=latents, decoder=None),
    }
    bundles.save(root, manifest.with_variants(others))
    return root


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def bench(root: Path, output: Path, *options: object) -> Result:
    return run("bench", root, "-o", output, "--threads", 1, "--quick", *options)


@pytest.fixture(scope="module")
def measured(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    variants = f"{TWIN},fp32,{FP4}"
    options = ("--repeats", 1, "--baseline", "fp32")
    refused = bench(root, folder, *options, "--variants", variants)
    assert refused.exit_code == 1
    assert "only TensorRT has" in refused.stderr
    assert not folder.exists(), "what was asked for by name is played, or nothing is"
    return bench(root, folder, *options, "--variants", f"{TWIN},fp32"), folder


@pytest.fixture(scope="module")
def report(measured: tuple[Result, Path]) -> Report:
    result, folder = measured
    assert result.exit_code == 0, result.output
    return reports.read(folder / "report.json")


def test_it_writes_a_page_and_json_that_has_the_schema(
    measured: tuple[Result, Path], report: Report
) -> None:
    result, folder = measured
    data = json.loads((folder / "report.json").read_text())
    jsonschema.validate(data, reports.schema())
    assert result.stdout.splitlines()[-1] == str(folder / "index.html")
    assert "Quick run" in (folder / "index.html").read_text()
    assert report.quick
    assert "fp32, round 1 of 1" in result.stderr


def test_the_baseline_comes_first_and_the_others_are_compared_with_it(report: Report) -> None:
    assert [side.name for side in report.sides] == ["fp32", TWIN]
    for name, measurement in report.sides[1].boundaries.items():
        assert (measurement.ratio is None) == (name in {"compile", "warm_up"})
    assert report.sides[1].latents_difference == 0, "the same graphs, the same noise"


def test_the_work_is_what_was_counted(report: Report) -> None:
    work = report.work
    assert (work.num_inference_steps, work.passes) == (4, 4)
    assert (work.num_frames, work.decoded) == (17, 17)
    assert (work.height, work.width, work.guidance_scale) == (64, 64, 6.0)


def test_the_parts_of_a_clip_make_up_the_clip(report: Report) -> None:
    for side in report.sides:
        seconds = {name: each.spread.median for name, each in side.boundaries.items()}
        parts = seconds["text"] + seconds["denoise"] + seconds["decode"]
        assert 0.5 * seconds["clip"] < parts < seconds["clip"]
        assert 3 * seconds["step"] < seconds["denoise"]
        assert seconds["first_frame"] < seconds["clip"]
        assert 0 < seconds["compile"] < seconds["load"]
        assert side.boundaries["step"].spread.count == 3


def test_every_graph_that_ran_is_timed(root: Path, report: Report) -> None:
    listed = Bundle.open(root).manifest.variant("fp32").graphs
    for side in report.sides:
        runs = {share.time.graph: share.time.runs for share in side.graphs}
        assert set(runs) == set(listed) - {"vae_encoder"}
        assert (runs["block_00"], runs["solver"], runs["vae_decoder"]) == (4, 4, 4)
        assert (runs["text_encoder"], runs["vae_decoder_first"]) == (2, 1)
        assert sum(share.share for share in side.graphs) == pytest.approx(1)
        assert all(share.time.seconds > 0 for share in side.graphs)
        assert side.host_peak_bytes is not None
        assert 50e6 < side.host_peak_bytes < 2e9
        assert side.bound is None


def test_work_that_differs_is_refused_by_name(root: Path, tmp_path: Path) -> None:
    names = f"fp32,{WITHOUT_DECODER}"
    result = bench(root, tmp_path / "report", "--repeats", 1, "--variants", names)
    assert result.exit_code == 1
    assert f"fp32 and {WITHOUT_DECODER} did not do the same work: decoded is 17 and 0" in (
        result.stderr
    )
    assert not (tmp_path / "report").exists()


def test_by_default_all_that_run_here_are_measured_without_those_that_do_not(
    root: Path, tmp_path: Path
) -> None:
    """One variant and one that a CPU refuses, which is named with its reason."""
    manifest = Bundle.open(root).manifest
    two = {name: manifest.variants[name] for name in (FP4, WITHOUT_DECODER)}
    copy = Path(shutil.copytree(root, tmp_path / "bundle"))
    bundles.save(copy, replace(manifest, variants=two))
    result = bench(copy, tmp_path / "report", "--repeats", 1)
    assert result.exit_code == 0, result.output
    report = reports.read(tmp_path / "report/report.json")
    (side,) = report.sides
    assert side.name == WITHOUT_DECODER
    assert not {"decode", "first_frame"} & set(side.boundaries)
    assert "only TensorRT has" in report.not_measured[FP4]
    assert FP4 in result.stdout.split("Not measured")[1]


def test_diffusers_plays_the_same_clip_beside_it(
    root: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    """The compiled pipeline is given no time, so that it is seen to be given up."""
    against = ("--against", "diffusers", "--checkpoint", small_checkpoint)
    options = ("--repeats", 1, "--variants", "fp32", "--compile-limit", 0.1)
    result = bench(root, tmp_path, *against, *options)
    assert result.exit_code == 0, result.output
    report = reports.read(tmp_path / "report.json")
    ours, theirs = report.sides
    assert (theirs.name, theirs.kind, theirs.device) == ("diffusers-eager", "diffusers", "cpu")
    assert theirs.latents_difference < 1e-4, "the same weights, prompt, noise, steps"
    assert "limit of 0.1 s" in report.not_measured["diffusers-compiled"]
    compared = {name for name, each in theirs.boundaries.items() if each.ratio is not None}
    assert compared == {"load", "text", "step", "denoise", "decode", "first_frame", "clip"}
    assert "commit" not in ours.boundaries


def test_a_stream_has_commits_and_no_diffusers(
    causal_bundle: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    result = bench(causal_bundle, tmp_path, "--repeats", 1)
    assert result.exit_code == 0, result.output
    report = reports.read(tmp_path / "report.json")
    (side,) = report.sides
    assert side.boundaries["commit"].spread.count == 1
    assert side.boundaries["step"].spread.count == 6
    assert report.work.passes == 9, "two chunks of four steps, and a commit"
    result = bench(
        causal_bundle, tmp_path / "no", "--against", "diffusers", "--checkpoint", small_checkpoint
    )
    assert result.exit_code == 2
    assert "diffusers has no pipeline that streams" in result.stderr


def test_a_report_compared_with_itself_and_with_a_slower_one(
    measured: tuple[Result, Path], report: Report, tmp_path: Path
) -> None:
    before = measured[1] / "report.json"
    result = run("compare", before, before, "--fail-above", 1.0, "--boundary", "clip")
    assert result.exit_code == 0, result.output
    assert "1.000 to 1.000" in result.stdout
    slower = json.loads(before.read_text())
    clip = slower["sides"][0]["boundaries"]["clip"]
    clip["rounds"] = [2 * each for each in clip["rounds"]]
    slower["conditions"]["processor"] = "another"
    after = tmp_path / "after.json"
    after.write_text(json.dumps(slower))
    result = run("compare", before, after, "--fail-above", 1.1)
    assert result.exit_code == 1
    assert result.stderr == "clip of fp32 takes 2 times as long as before, more than 1.1.\n"
    assert "another" in result.stdout.split("Conditions that differ")[1]
    shown = json.loads(run("compare", before, after, "--json").stdout)
    assert shown["conditions"]["processor"] == [report.conditions["processor"], "another"]


def test_reports_of_other_work_are_not_compared(
    measured: tuple[Result, Path], report: Report, tmp_path: Path
) -> None:
    other = replace(report, work=replace(report.work, num_inference_steps=50))
    reports.write(other, tmp_path / "other.json")
    result = run("compare", measured[1] / "report.json", tmp_path / "other.json")
    assert result.exit_code == 1
    assert "num_inference_steps is 4 and 50" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--variants", "fp32,,twin"), 2, "has an empty name"),
        (("--variants", "fp23"), 1, "has no variant 'fp23'"),
        (("--baseline", "fp23"), 1, "has no variant 'fp23'"),
        (("--against", "diffusers"), 2, "without the other"),
        (("--workload", "4k"), 2, "There is no workload '4k'"),
        (("--num-inference-steps", 0), 2, "num_inference_steps"),
        (("--prompts", "nothing.txt"), 1, "nothing.txt"),
        (("--backend", "abacus"), 2, "no backend 'abacus'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    root: Path, tmp_path: Path, options: tuple[object, ...], code: int, said: str
) -> None:
    result = bench(root, tmp_path / "report", *options)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert not (tmp_path / "report").exists()


def test_a_workload_is_played_as_its_plans_are_tuned(tmp_path: Path) -> None:
    from sana_rt.benchmarks.speed import sides
    from sana_rt.engines.workloads import Workload
    from sana_rt.errors import UsageError
    from sana_rt.export.seeded import SMALL
    from sana_rt.manifest import DimRange

    workload = Workload(num_frames=DimRange(5, 9, 17), height=32, width=64, batch=1)
    (one, two) = sides.requests(SMALL, ("A", "B"), workload=workload, seed=7)
    assert (one.num_frames, one.height, one.width, one.guidance_scale) == (9, 32, 64, 1.0)
    assert (one.seed, two.seed, two.prompt) == (7, 8, "B")
    unguided = replace(SMALL, sampling=replace(SMALL.sampling, guidance_scale=1.0))
    with pytest.raises(UsageError, match="batch of 2, with guidance"):
        sides.requests(unguided, ("a",), workload=replace(workload, batch=2))


def test_a_report_that_is_there_is_replaced_only_if_that_is_said(
    root: Path, measured: tuple[Result, Path]
) -> None:
    before = (measured[1] / "report.json").read_bytes()
    refused = bench(root, measured[1], "--variants", "fp32")
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert (measured[1] / "report.json").read_bytes() == before
