"""Calibration: what is measured, and what a table that does not fit does."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sana_rt.benchmarks import prompts_file, record
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.errors import CalibrationError, StorageError, UsageError
from sana_rt.export.modules.block import Block
from sana_rt.export.seeded import seeded_tensor
from sana_rt.quantize import calibrate, variant
from sana_rt.quantize.calibrate import CalibrationTable, Pass
from sana_rt.quantize.quantized_layer import fp8_scale
from sana_rt.quantize.recipe import LoadedRecipe, Recipe, Rule
from sana_rt.runtime.session import Session
from sana_rt.tensors import resolve

DIMS = {"batch": 1, "frames": 2, "rows": 2, "columns": 3, "length": 5}
#: Two ways to sum in float32: u·sqrt(K), K = 336, is 1e-6.
TOLERANCE = 2e-5


def silent(name: str, done: int, total: int) -> None:
    pass


def random_pass(bundle: Bundle, seed: int) -> Pass:
    random = np.random.default_rng(seed)
    graph = bundle.manifest.variant("fp32").graphs["block_00"]
    inputs: dict[str, Any] = {}
    for tensor in graph.inputs:
        shape = resolve(tensor.shape, DIMS)
        inputs[tensor.name] = random.standard_normal(shape, np.float32)
        if tensor.name.startswith("state_") or tensor.name == "text_bias":
            inputs[tensor.name] = np.zeros(shape, np.float32)
    text = (inputs.pop("text_k"), inputs.pop("text_v"))
    return Pass(500.0, inputs, (text, text), np.zeros(0, np.float32))


@pytest.fixture(scope="module")
def passes(block_bundle: Path) -> list[Pass]:
    bundle = Bundle.open(block_bundle)
    return [random_pass(bundle, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def table(block_bundle: Path, passes: list[Pass]) -> CalibrationTable:
    return calibrate.calibrate(Bundle.open(block_bundle), "fp32", passes, "0" * 64, silent)


def inputs_of_linears(bundle: Bundle, passes: list[Pass]) -> dict[str, float]:
    """The same magnitudes by hooks on the modules, block after block."""
    spec = bundle.manifest.model.transformer
    seen: dict[str, float] = {}
    tokens = [torch.from_numpy(each.inputs["tokens"]) for each in passes]
    for index in range(spec.num_layers):
        block = Block(spec)
        prefix = f"transformer_blocks.{index}."
        names = block.state_dict()
        block.load_state_dict(
            {n: seeded_tensor(prefix + n, tuple(names[n].shape), 0) for n in names}
        )
        for name, module in block.named_modules():
            if isinstance(module, torch.nn.Linear) or name in ("ff.conv_inverted", "ff.conv_point"):

                def keep(_: object, given: Any, key: str = f"block_{index:02d}/{name}") -> None:
                    seen[key] = max(seen.get(key, 0.0), given[0].abs().max().item())

                module.register_forward_pre_hook(keep)
        for number, each in enumerate(passes):
            arguments = {k: torch.from_numpy(v) for k, v in each.of_block(index).items()}
            with torch.no_grad():
                tokens[number] = block(**(arguments | {"tokens": tokens[number]}))[0]
    return seen


def test_magnitudes_are_those_that_the_modules_see(
    block_bundle: Path, passes: list[Pass], table: CalibrationTable
) -> None:
    wanted = inputs_of_linears(Bundle.open(block_bundle), passes)
    assert len(wanted) == 16
    for name, amax in wanted.items():
        assert table.amax[name] == pytest.approx(amax, rel=TOLERANCE)
    for block in ("block_00", "block_01"):
        assert table.amax[f"{block}/ff.conv_temp.1"] == table.amax[f"{block}/ff.conv_temp"] > 0


def test_not_a_number_names_the_layer(block_bundle: Path, passes: list[Pass]) -> None:
    text_k, text_v = passes[0].text[1]
    bad = replace(passes[0], text=(passes[0].text[0], (text_k, np.full_like(text_v, np.nan))))
    with pytest.raises(CalibrationError, match=r"block_01/attn2\.to_out\.0 has .* NaN"):
        calibrate.calibrate(Bundle.open(block_bundle), "fp32", [bad], "0" * 64, silent)


def recipe(*layers: str) -> LoadedRecipe:
    return LoadedRecipe(Recipe("own", "", (Rule(layers, "fp8", "", ""),)), "1" * 64)


@pytest.fixture
def root(block_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(block_bundle, tmp_path / "bundle"))


def test_the_table_reaches_the_graph(root: Path, table: CalibrationTable) -> None:
    from sana_rt.quantize import graph_file

    bundle = variant.quantize_bundle(root, recipe("block_01/attn1.to_q"), table)
    made = bundle.manifest.variant("nvfp4-own-emulation")
    assert made.recipe == f"own sha256:{'1' * 64} calibration sha256:{table.sha256}"
    path = bundle.path(made.graphs["block_01"].path)
    scale = graph_file.value(graph_file.read(path), "attn1.to_q/input_scale", path.parent)
    assert scale == fp8_scale(table.amax["block_01/attn1.to_q"])


def files(root: Path) -> dict[Path, bytes]:
    return {
        path: hashlib.sha256(path.read_bytes()).digest()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_table_that_does_not_fit_changes_nothing(root: Path, table: CalibrationTable) -> None:
    before = files(root)
    other = msgspec.structs.replace(table, checkpoint="f" * 64)
    with pytest.raises(CalibrationError, match="of the checkpoint with SHA-256 ffff"):
        variant.quantize_bundle(root, recipe("*to_q"), other)
    amax = {name: value for name, value in table.amax.items() if "attn2" not in name}
    with pytest.raises(CalibrationError, match=r"knows nothing of block_00/attn2\.to_q"):
        variant.quantize_bundle(root, recipe("*to_q"), msgspec.structs.replace(table, amax=amax))
    assert files(root) == before


def test_a_table_is_read_back(table: CalibrationTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(calibrate.encode(table))
    assert calibrate.read(path) == table
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"sana-rt-calibration"', '"other"'),
        ('"format_version": 1', '"format_version": 2'),
        ('"passes"', '"samples"'),
        ('"passes": 2', '"passes": 0'),
        ("{", ""),
    ],
)
def test_what_is_no_table_is_refused(
    table: CalibrationTable, tmp_path: Path, before: str, after: str
) -> None:
    path = tmp_path / "table.json"
    text = calibrate.encode(table).decode()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(CalibrationError, match="is no calibration table"):
        calibrate.read(path)
    with pytest.raises(StorageError):
        calibrate.read(tmp_path / "missing.json")


def test_prompts_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\n\n  ein blauer Kreis \n")
    assert prompts_file.read(path)[0] == ("a red circle", "ein blauer Kreis")
    path.write_text("\n")
    with pytest.raises(UsageError, match="no prompts"):
        prompts_file.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        prompts_file.read(path)


def test_from_prompts_to_a_clip(small_bundle: Path, tmp_path: Path) -> None:
    """The command line, the real sampler, and the emulation played beside the original."""
    root = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moving to the right\n")
    saved = tmp_path / "table.json"
    run = ["quantize", str(root), "--recipe", "mixed", "--prompts", str(prompts), "--threads", "1"]
    result = CliRunner().invoke(cli, [*run, "--save-calibration", str(saved)])
    assert result.exit_code == 0, result.output
    assert "nvfp4-mixed-emulation" in result.output
    assert calibrate.read(saved).passes == record.STEPS

    model = Bundle.open(root).manifest.model
    from sana_rt.runtime.request import for_model

    given = {"prompt": "a", "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    request = for_model(model, given)
    clips = []
    for name in ("fp32", "nvfp4-mixed-emulation"):
        session = Session.open(root, variant=name, backend="onnxruntime", threads=1)
        clips.append(np.concatenate([chunk.latents for chunk in session.latents(request)], axis=2))
    assert Session.open(root, backend="onnxruntime", threads=1).graphs.signatures == (
        Bundle.open(root).manifest.variant("fp32").graphs
    ), "a quantized variant is never the default"
    error = np.linalg.norm(clips[0] - clips[1]) / np.linalg.norm(clips[0])
    assert 0 < error < 0.5, "quantized, and still the same clip"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "p.txt", "--calibration", "t.json"], "Both --prompts and --calibration"),
        (["--save-calibration", "t.json"], "no calibration to save"),
    ],
)
def test_options_that_contradict_each_other(root: Path, options: list[str], message: str) -> None:
    before = files(root)
    result = CliRunner().invoke(cli, ["quantize", str(root), "--recipe", "max", *options])
    assert result.exit_code == 2
    assert message in click.unstyle(result.output)
    assert files(root) == before
