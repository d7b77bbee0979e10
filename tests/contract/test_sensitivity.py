"""``sana-rt sensitivity``: numbers against another way to get them, and the recipe they make."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from sana_rt.bundle import Bundle
from sana_rt.cli import cli, prompts_file
from sana_rt.errors import UsageError
from sana_rt.quantize import calibrate, heat_map, recipe, sensitivity, variant
from sana_rt.quantize.calibration_table import CalibrationTable
from sana_rt.quantize.passes import Pass, RecordedPasses
from sana_rt.quantize.recipe import LoadedRecipe, Recipe, Rule
from sana_rt.quantize.sensitivity import Sensitivity
from sana_rt.runtime import recording

#: Two runs of the same float32 graphs, one with weights repacked by ONNX Runtime: the error of a
#: sum is 1e-6 of it, and that of a velocity that moved by 1e-3 a thousand times as much.
TOLERANCE = 1e-2


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red circle moving to the right\n")
    return path


@pytest.fixture(scope="module")
def two_steps() -> Iterator[None]:
    """Play prompts in two steps: two noise levels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "STEPS", 2)
        yield


@pytest.fixture(scope="module")
def passes(
    small_bundle: Path, prompts: Path, two_steps: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RecordedPasses]:
    lines, sha256 = prompts_file.read(prompts)
    bundle, path = Bundle.open(small_bundle), tmp_path_factory.mktemp("passes") / "passes.npz"
    recording.record(path, bundle, "fp32", lines, sha256, threads=1, progress=lambda *_: None)
    with RecordedPasses.open(path, bundle.manifest.variant("fp32").source.sha256) as passes:
        yield passes


@pytest.fixture(scope="module")
def table(small_bundle: Path, passes: RecordedPasses) -> CalibrationTable:
    bundle = Bundle.open(small_bundle)
    return calibrate.calibrate(bundle, "fp32", passes, "0" * 64, lambda *_: None)


@dataclass(frozen=True)
class Run:
    """What the command printed, and the files that it wrote."""

    stdout: str
    entries: Path
    picture: Path
    recipe: Path


@pytest.fixture(scope="module")
def run(
    small_bundle: Path, prompts: Path, two_steps: None, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The command, once for all tests: it is what takes the time here."""
    folder = tmp_path_factory.mktemp("run")
    paths = [folder / name for name in ("out.json", "out.svg", "own.toml")]
    arguments = ["sensitivity", str(small_bundle), "--prompts", str(prompts)]
    arguments += ["-o", str(paths[0]), "--heat-map", str(paths[1]), "--propose", str(paths[2])]
    result = CliRunner().invoke(cli, [*arguments, "--threads", "1"])
    assert result.exit_code == 0, result.output
    return Run(result.stdout, *paths)


@pytest.fixture(scope="module")
def found(run: Run) -> Sensitivity:
    return msgspec.json.decode(run.entries.read_bytes(), type=Sensitivity)


def velocity(bundle: Bundle, name: str, each: Pass) -> np.ndarray:
    """The transformer played graph by graph, from the files of a variant."""
    graphs = bundle.manifest.variant(name).graphs
    tokens = each.inputs["tokens"]
    for index in range(bundle.manifest.model.transformer.num_layers):
        session = ort.InferenceSession(bundle.path(graphs[f"block_{index:02d}"].path))
        tokens = session.run(["tokens_out"], {**each.of_block(index), "tokens": tokens})[0]
    final = ort.InferenceSession(bundle.path(graphs["final_layer"].path))
    return final.run(None, {"tokens": tokens, "embedding": each.embedding})[0]


def test_the_error_is_that_of_a_variant_with_this_layer(
    small_bundle: Path,
    tmp_path: Path,
    passes: RecordedPasses,
    table: CalibrationTable,
    found: Sensitivity,
) -> None:
    layer = "block_01/ff.conv_point"
    root = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    alone = LoadedRecipe(Recipe("own", "", (Rule((layer,), "nvfp4", "", ""),)), "0" * 64)
    bundle = variant.quantize_bundle(root, alone, table)
    for each in passes:
        wanted = velocity(bundle, "fp32", each)
        change = velocity(bundle, "nvfp4-own-emulation", each) - wanted
        error = np.linalg.norm(change) / np.linalg.norm(wanted)
        (entry,) = (
            one for one in found.entries if one.layer == layer and one.timestep == each.timestep
        )
        assert entry.velocity_error == pytest.approx(error, rel=TOLERANCE)


def test_there_is_an_entry_for_each_layer_and_pass(
    found: Sensitivity, passes: RecordedPasses
) -> None:
    assert len(found.entries) == 4 * 9 * len(passes)
    assert {entry.timestep for entry in found.entries} == {each.timestep for each in passes}
    first = [entry for entry in found.entries if entry.timestep == passes[0].timestep]
    assert sum(entry.share for entry in first) == pytest.approx(1)


def test_ten_to_twenty_five_decibels_for_four_bits(found: Sensitivity) -> None:
    """Gaussian values in E2M1 with a scale for 16 of them have about 20 dB; here both sides."""
    for entry in found.entries:
        assert 10 < entry.sqnr < 25
        assert 0.95 < entry.cosine < 1
        assert 0 < entry.velocity_error < 1


def test_fp8_loses_less(
    small_bundle: Path, passes: RecordedPasses, table: CalibrationTable, found: Sensitivity
) -> None:
    bundle = Bundle.open(small_bundle)
    fp8 = sensitivity.measure(bundle, "fp32", passes[:1], table, fmt="fp8")
    by_layer = {one.layer: one for one in found.entries if one.timestep == passes[0].timestep}
    assert all(one.sqnr > by_layer[one.layer].sqnr for one in fp8.entries)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_proposal_has_its_share_and_every_layer(
    small_bundle: Path, found: Sensitivity, share: float
) -> None:
    proposed = sensitivity.propose(found, share, "own")
    assert recipe.parse(sensitivity.to_toml(proposed).encode(), "own") == proposed
    layers = variant.read_layers(Bundle.open(small_bundle), "fp32")
    names = [layer.name for each in layers.values() for layer in each]
    rules = recipe.resolve(proposed, names)
    assert set(rules) == {name for name in names if name.startswith("block_")}
    shares = {entry.layer: entry.share for entry in found.entries}
    in_fp4 = sum(shares[name] for name in shares if rules[name].format == "nvfp4")
    assert share - 1e-6 <= in_fp4 <= share + max(shares.values())


def test_a_larger_share_keeps_what_a_smaller_one_has(found: Sensitivity) -> None:
    few, more = (set(sensitivity.propose(found, s, "own").rules[0].layers) for s in (0.3, 0.6))
    assert few < more


@pytest.mark.parametrize("share", [0.0, -0.5, 1.1, float("nan")])
def test_no_such_share(found: Sensitivity, share: float) -> None:
    with pytest.raises(UsageError, match="share of FLOPs"):
        sensitivity.propose(found, share, "own")


def test_the_picture_names_layers_and_blocks(found: Sensitivity) -> None:
    svg = heat_map.draw(found).decode()
    assert svg == heat_map.draw(found).decode(), "the same table, the same picture"
    for text in ("ff.conv_inverted", "attn1.to_out.0", "block"):
        assert f"<!-- {text} -->" in svg


def test_the_command_writes_all_three(run: Run, found: Sensitivity) -> None:
    assert "ff.conv_temp" in run.stdout
    assert found.passes == 2
    assert run.picture.read_bytes() == heat_map.draw(found)
    written = recipe.load(str(run.recipe)).recipe
    assert written == sensitivity.propose(found, 0.67, "own")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "out.txt"], "does not end in .json"),
        (["-o", "out.json", "--fp4-share", "2"], "share of FLOPs"),
        (["-o", "out.json", "--propose", "My recipe.toml"], "cannot be called"),
        (["-o", "out.json", "--propose", "own.toml", "--format", "fp8"], "needs errors in NVFP4"),
    ],
)
def test_bad_options_are_refused_before_anything_is_played(
    tmp_path: Path, options: list[str], message: str
) -> None:
    run = ["sensitivity", str(tmp_path / "none"), "--prompts", "none.txt", *options]
    result = CliRunner().invoke(cli, run)
    assert result.exit_code == 2
    assert message in result.output
