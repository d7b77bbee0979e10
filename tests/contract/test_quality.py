"""``sana-rt quality``: a baseline that equals itself, and what the numbers mean."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from examples.shapes import judge
from skimage.metrics import peak_signal_noise_ratio

from sana_rt.benchmarks.quality import compare, page
from sana_rt.benchmarks.quality.compare import Clip, Comparison, Player
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.errors import ManifestError, UsageError, VerificationError
from sana_rt.quantize import recipe, variant
from sana_rt.runtime.request import Request, for_model

EMULATION = "nvfp4-max-emulation"
SCORED = ["--scorer", "examples.shapes.judge:followed", "--scored", "2"]
SIZES = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def root(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(small_bundle, tmp_path_factory.mktemp("quality") / "bundle"))
    variant.quantize_bundle(root, recipe.load("max"))
    return root


@pytest.fixture(scope="module")
def requests(root: Path) -> list[Request]:
    model = Bundle.open(root).manifest.model
    return [for_model(model, {**SIZES, "prompt": text, "seed": 3}) for text in ("a <b>", "a c")]


@pytest.fixture(scope="module")
def comparison(root: Path, requests: list[Request]) -> Comparison:
    bundle = Bundle.open(root)
    return compare.compare(bundle, "fp32", ["fp32", EMULATION], requests, threads=1)


def test_the_baseline_is_perfect(comparison: Comparison) -> None:
    itself = comparison.report.variants[0]
    assert itself.psnr == itself.worst_psnr == compare.IDENTICAL
    assert itself.ssim == 1
    assert itself.free_error == itself.forced_error == (0, 0, 0)


def test_a_quantized_variant_is_worse_and_not_lost(comparison: Comparison) -> None:
    quantized = comparison.report.variants[1]
    assert 15 < quantized.worst_psnr <= quantized.psnr < 60
    assert 0.5 < quantized.ssim < 1
    assert len(quantized.psnr_by_frame) == SIZES["num_frames"]
    assert quantized.recipe is not None


def test_free_and_forced_agree_in_the_first_step(comparison: Comparison) -> None:
    """Both start from the same noise; later, forced steps start where the baseline is."""
    quantized = comparison.report.variants[1]
    assert quantized.free_error[0] == quantized.forced_error[0] > 0
    assert quantized.free_error[-1] > quantized.forced_error[-1] > 0


def test_psnr_is_that_of_skimage() -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    assert compare.psnr(one, other) == pytest.approx(peak_signal_noise_ratio(one, other))
    assert compare.psnr(one, one) == compare.IDENTICAL


def test_a_baseline_that_does_not_repeat_is_refused(
    root: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Player.play
    calls = []

    def drifting(self: Player, request: Request) -> Clip:
        clip = played(self, request)
        calls.append(request)
        return Clip(clip.frames + np.uint8(len(calls) == 2), clip.steps)

    monkeypatch.setattr(Player, "play", drifting)
    with pytest.raises(VerificationError, match="two clips for one request"):
        compare.compare(Bundle.open(root), "fp32", [EMULATION], requests[:1], threads=1)


def test_nothing_to_compare_is_refused(root: Path, requests: list[Request]) -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        compare.compare(Bundle.open(root), "fp32", [], requests)


def test_the_page_needs_nothing_beside_it(comparison: Comparison) -> None:
    html = page.render(comparison)
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(links) == 3 + 2  # curves and contact sheets
    assert all(link.startswith("data:image/") for link in links)
    assert "a &lt;b&gt;" in html
    assert "a <b>" not in html
    assert EMULATION in html
    sheet = page.sheet(comparison.frames[0])
    assert sheet.shape == (2 * 32, 5 * 32, 3), "two variants, five frames"


def test_the_command_writes_page_and_json(root: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    page = tmp_path / "quality.html"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    run = ["quality", str(root), "--prompts", str(prompts), "-o", str(page), "--threads", "1"]
    result = CliRunner().invoke(cli, [*run, *options])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(page)
    report = json.loads(page.with_suffix(".json").read_text())
    assert [each["variant"] for each in report["variants"]] == [EMULATION]
    assert report["num_inference_steps"] == 3


def test_recipes_can_be_named_and_clips_scored(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the seeded model all clips are wrong; the judge's own tests say that it can tell."""
    monkeypatch.setattr(judge, "_options", lambda *_: SIZES | {"height": 64, "width": 64})
    prompts, page = tmp_path / "prompts.txt", tmp_path / "quality.html"
    prompts.write_text("a red circle\n")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    run = ["quality", str(root), "--prompts", str(prompts), "-o", str(page), "--threads", "1"]
    result = CliRunner().invoke(cli, [*run, *options, "--variants", "fp32 , max", *SCORED])
    assert result.exit_code == 0, result.output
    report = json.loads(page.with_suffix(".json").read_text())
    assert [each["variant"] for each in report["variants"]] == ["fp32", EMULATION]
    assert report["scorer"] == "examples.shapes.judge:followed"
    assert list(report["scores"]) == ["fp32", EMULATION]
    assert report["scores"]["fp32"]["direction"]["n"] == 2
    assert "<h2>Scores</h2>" in page.read_text()
    assert "Scores of 2 clips" in result.stdout


@pytest.fixture
def unplayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a session fails."""
    monkeypatch.setattr("sana_rt.runtime.session.Session.open", lambda *_, **__: 1 / 0)


@pytest.mark.parametrize("baseline", ["fp32", "fp23"])
def test_a_variant_that_is_not_there_is_refused_before_anything_is_played(
    root: Path, requests: list[Request], baseline: str, unplayed: None
) -> None:
    variants = ["fp32", "nvfp4-paper-emulation"] if baseline == "fp32" else ["fp32"]
    wanted = variants[-1] if baseline == "fp32" else baseline
    with pytest.raises(ManifestError, match=f"no variant '{wanted}'") as refused:
        compare.compare(Bundle.open(root), baseline, variants, requests)
    assert f"'fp32', '{EMULATION}'" in refused.value.expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--variants", ""], "has an empty name"),
        (["--variants", "fp32,,max"], "has an empty name"),
        (["--variants", "max, "], f"of fp32, {EMULATION}"),
        (["--scored", "2"], "--scored is given without --scorer"),
        (["--scorer", "examples.shapes.judge:praised"], "has no function 'praised'"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused_before_anything_is_played(
    root: Path, tmp_path: Path, options: list[str], said: str, unplayed: None
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    files = ["--prompts", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "quality.html")]
    result = CliRunner().invoke(cli, ["quality", str(root), *files, *options])
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_bundle_without_emulation_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    page = tmp_path / "quality.html"
    run = ["quality", str(small_bundle), "--prompts", str(prompts), "-o", str(page)]
    result = CliRunner().invoke(cli, run)
    assert result.exit_code == 2
    assert "sana-rt quantize" in result.output
    assert not page.exists()
