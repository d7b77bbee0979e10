"""Calibration: what is measured, and what a table that does not fit does."""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper

from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.cli import cli, prompts_file
from sana_rt.errors import CalibrationError, QuantizationError, StorageError, UsageError
from sana_rt.export.modules.block import Block
from sana_rt.export.seeded import seeded_tensor
from sana_rt.manifest import Calibration, Quantization
from sana_rt.quantize import (
    calibrate,
    calibration_table,
    graph_file,
    modelopt_cpu,
    nvfp4,
    variant,
)
from sana_rt.quantize.calibration_table import Algorithm, CalibrationTable
from sana_rt.quantize.passes import Pass
from sana_rt.quantize.quantized_layer import QuantizedFormat, fp8_scale
from sana_rt.quantize.recipe import LoadedRecipe, Recipe, Rule
from sana_rt.runtime import recording
from sana_rt.runtime.session import Session
from sana_rt.tensors import resolve

DIMS = {"batch": 1, "frames": 2, "rows": 2, "columns": 3, "length": 5}
#: Two ways to sum in float32: u·sqrt(K), K = 336, is 1e-6.
TOLERANCE = 2e-5
#: Half a unit in the last place of a bfloat16, which scales are rounded to.
BFLOAT16 = 2.0**-8

NVFP4: dict[str, QuantizedFormat] = {
    f"block_{index:02d}/{layer}": "nvfp4"
    for index in range(2)
    for layer in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "ff.conv_point", "ff.conv_temp")
}
NVFP4["block_01/ff.conv_temp.1"] = "nvfp4"


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


@pytest.fixture(scope="module")
def awq(block_bundle: Path, passes: list[Pass]) -> CalibrationTable:
    bundle = Bundle.open(block_bundle)
    return calibrate.calibrate(
        bundle, "fp32", passes, "0" * 64, silent, algorithm="awq-lite", formats=NVFP4
    )


@dataclass
class Seen:
    """A linear layer of the modules, and what it was given."""

    weight: torch.Tensor  # [N, K]
    inputs: list[torch.Tensor]

    @property
    def amax(self) -> float:
        return max(each.abs().max().item() for each in self.inputs)


@pytest.fixture(scope="module")
def linears(block_bundle: Path, passes: list[Pass]) -> dict[str, Seen]:
    """The linear layers by hooks on the modules, block after block."""
    spec = Bundle.open(block_bundle).manifest.model.transformer
    seen: dict[str, Seen] = {}
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
                layer = Seen(module.weight.detach().flatten(1), [])
                seen[f"block_{index:02d}/{name}"] = layer

                def keep(_: object, given: Any, layer: Seen = layer) -> None:
                    layer.inputs.append(given[0].detach().clone())

                module.register_forward_pre_hook(keep)
        for number, each in enumerate(passes):
            arguments = {k: torch.from_numpy(v) for k, v in each.of_block(index).items()}
            with torch.no_grad():
                tokens[number] = block(**(arguments | {"tokens": tokens[number]}))[0]
    return seen


def test_magnitudes_are_those_that_the_modules_see(
    linears: dict[str, Seen], table: CalibrationTable
) -> None:
    assert len(linears) == 16
    for name, layer in linears.items():
        assert table.amax[name] == pytest.approx(layer.amax, rel=TOLERANCE)
    for block in ("block_00", "block_01"):
        assert table.amax[f"{block}/ff.conv_temp.1"] == table.amax[f"{block}/ff.conv_temp"] > 0
    assert table.algorithm == "max"
    assert not table.channel_scales


@pytest.mark.parametrize(
    "layers",
    [
        ("block_00/attn1.to_q", "block_00/attn1.to_k", "block_00/attn1.to_v"),
        ("block_01/attn1.to_q", "block_01/attn1.to_k", "block_01/attn1.to_v"),
        ("block_01/ff.conv_point",),
    ],
)
def test_scales_are_those_of_modelopt_on_the_modules(
    linears: dict[str, Seen], awq: CalibrationTable, layers: tuple[str, ...]
) -> None:
    """ModelOpt's own recipe for AWQ on a linear layer, with what hooks saw of its input."""
    weight = torch.cat([linears[name].weight for name in layers])
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    inputs = linears[layers[0]].inputs
    given = torch.cat([each.movedim(1, -1) if each.shape[-1] != weight.shape[1] else each
                       for each in inputs]).reshape(-1, weight.shape[1])  # fmt: skip
    mtq = modelopt_cpu.mtq
    mtq.quantize(linear, mtq.NVFP4_AWQ_LITE_CFG, lambda module: module(given))
    wanted = linear.input_quantizer.pre_quant_scale.numpy()
    for name in layers:
        amax, scales = awq.of_layer(name)
        assert scales is not None
        assert np.allclose(scales, wanted, rtol=BFLOAT16 + TOLERANCE, atol=0)
        scaled = np.abs(given.numpy() * np.array(scales, np.float32)).max()
        assert amax == pytest.approx(scaled, rel=TOLERANCE)
    assert np.ptp(wanted) > 0.1, "the scales are not all alike"


def test_awq_scales_what_is_in_nvfp4_and_nothing_else(
    awq: CalibrationTable, table: CalibrationTable
) -> None:
    assert set(awq.channel_scales) == set(NVFP4)
    assert set(awq.amax) == set(table.amax)
    for name in set(table.amax) - set(NVFP4):
        assert awq.amax[name] == table.amax[name]
    second = "block_01/ff.conv_temp.1"
    assert awq.channel_scales[second] == awq.channel_scales["block_01/ff.conv_temp"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("formats", [{}, NVFP4], ids=["max", "awq-lite"])
def test_values_that_are_not_finite_name_the_layer(
    block_bundle: Path, passes: list[Pass], value: float, formats: dict[str, QuantizedFormat]
) -> None:
    text_k, text_v = passes[0].text[1]
    bad = replace(passes[0], text=(passes[0].text[0], (text_k, np.full_like(text_v, value))))
    with pytest.raises(CalibrationError, match=r"block_01/attn2\.to_out\.0 has .* NaN"):
        calibrate.calibrate(
            Bundle.open(block_bundle),
            "fp32",
            [passes[0], bad],
            "0" * 64,
            silent,
            algorithm="awq-lite" if formats else "max",
            formats=formats,
        )


def test_bad_tokens_are_blamed_on_the_pass_before(block_bundle: Path, passes: list[Pass]) -> None:
    """What the sampler carries from one pass to the next is not the first block's doing."""
    tokens = np.full_like(passes[1].inputs["tokens"], np.nan)
    bad = replace(passes[1], inputs={**passes[1].inputs, "tokens": tokens})
    text_k, text_v = passes[0].text[1]
    cause = replace(passes[0], text=(passes[0].text[0], (text_k, np.full_like(text_v, np.nan))))
    bundle = Bundle.open(block_bundle)
    for given, message in (
        ([cause, bad], r"block_01/attn2\.to_out\.0 has"),
        ([bad, cause], r"block_00/attn1\.to_k has"),
        ([passes[0], bad], "in front of the blocks .* in pass 2"),
    ):
        with pytest.raises(CalibrationError, match=message):
            calibrate.calibrate(bundle, "fp32", given, "0" * 64, silent)


def recipe(*layers: str, fmt: QuantizedFormat = "fp8") -> LoadedRecipe:
    return LoadedRecipe(Recipe("own", "", (Rule(layers, fmt, "", ""),)), "1" * 64)


@pytest.fixture
def root(block_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(block_bundle, tmp_path / "bundle"))


def test_the_table_reaches_the_graph(root: Path, table: CalibrationTable) -> None:
    bundle = variant.quantize_bundle(root, recipe("block_01/attn1.to_q"), table)
    made = bundle.manifest.variant("fp8-own-emulation")
    assert made.quantization == Quantization("own", "1" * 64, "emulation", table.record)
    assert table.record == Calibration(
        "max", table.sha256, table.prompts, table.checkpoint, table.passes
    )
    path = bundle.path(made.graphs["block_01"].path)
    scale = graph_file.value(graph_file.read(path), "attn1.to_q/input_scale", path.parent)
    assert scale == fp8_scale(table.amax["block_01/attn1.to_q"])


def test_scales_reach_the_graph(root: Path, awq: CalibrationTable) -> None:
    """Both graphs multiply by the same numbers, one in bfloat16 and one in float32."""
    bundle = variant.quantize_bundle(root, recipe("block_00/attn1.to_[qk]", fmt="nvfp4"), awq)
    amax, scales = awq.of_layer("block_00/attn1.to_q")
    for name in ("nvfp4-own", "nvfp4-own-emulation"):
        path = bundle.path(bundle.manifest.variant(name).graphs["block_00"].path)
        model = graph_file.read(path)
        found = graph_file.value(model, "attn1.to_k/channel_scales", path.parent)
        assert np.array_equal(found.astype(np.float32), np.array(scales, np.float32))
        level = graph_file.value(model, "attn1.to_k/input_global_scale", path.parent)
        assert level == nvfp4.global_scale(amax)


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
    with pytest.raises(CalibrationError, match=r"has no entry for block_00/attn2\.to_q"):
        variant.quantize_bundle(root, recipe("*to_q"), msgspec.structs.replace(table, amax=amax))
    assert files(root) == before


def test_scales_that_do_not_fit_change_nothing(
    root: Path, awq: CalibrationTable, table: CalibrationTable
) -> None:
    """A table of AWQ belongs to the formats that it was made for."""
    before = files(root)
    for loaded in (
        recipe("block_00/attn1.to_q"),  # was NVFP4
        recipe("block_00/attn2.to_q", fmt="nvfp4"),  # was not
    ):
        with pytest.raises(CalibrationError, match="made for other formats of block_00/attn"):
            variant.quantize_bundle(root, loaded, awq)
    name = "block_00/attn1.to_q"
    scales = awq.channel_scales[name]
    for bad in (scales[1:], (0.0, *scales[1:]), (1.001, *scales[1:]), (np.inf, *scales[1:])):
        broken = msgspec.structs.replace(awq, channel_scales={name: bad})
        with pytest.raises(QuantizationError, match=rf"{name} cannot .* 11[12] channel scales"):
            variant.quantize_bundle(root, recipe(name, fmt="nvfp4"), broken)
    assert files(root) == before
    variant.quantize_bundle(root, recipe("block_00/attn2.to_q"), awq)
    variant.quantize_bundle(root, recipe(name, fmt="nvfp4"), table)


def test_a_table_is_read_back(
    table: CalibrationTable, awq: CalibrationTable, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    for each in (table, awq):
        path.write_bytes(calibration_table.encode(each))
        assert calibration_table.read(path) == each
        assert each.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"sana-rt-calibration"', '"other"'),
        ('"format_version": 1', '"format_version": 2'),
        ('"passes"', '"samples"'),
        ('"passes": 2', '"passes": 0'),
        ('"max"', '"average"'),
        ("{", ""),
    ],
)
def test_what_is_no_table_is_refused(
    table: CalibrationTable, tmp_path: Path, before: str, after: str
) -> None:
    path = tmp_path / "table.json"
    text = calibration_table.encode(table).decode()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(CalibrationError, match="is not a calibration table"):
        calibration_table.read(path)
    with pytest.raises(StorageError):
        calibration_table.read(tmp_path / "missing.json")


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


@pytest.mark.parametrize("algorithm", ["max", "awq-lite"])
def test_from_prompts_to_a_clip(small_bundle: Path, tmp_path: Path, algorithm: Algorithm) -> None:
    """The command line, the real sampler, and the emulation played beside the original."""
    root = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moving to the right\n")
    saved = tmp_path / "table.json"
    run = ["quantize", str(root), "--recipe", "mixed", "--prompts", str(prompts), "--threads", "1"]
    choice = [] if algorithm == "max" else ["--algorithm", algorithm]
    result = CliRunner().invoke(cli, [*run, *choice, "--save-calibration", str(saved)])
    assert result.exit_code == 0, result.output
    assert "nvfp4-mixed-emulation" in result.output
    table = calibration_table.read(saved)
    assert (table.passes, table.algorithm) == (recording.STEPS, algorithm)
    assert bool(table.channel_scales) == (algorithm == "awq-lite")

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


def test_activations_that_overflow_change_nothing(small_bundle: Path, tmp_path: Path) -> None:
    """Finite weights, and inputs of layers that are not."""
    root = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    path = root / "fp32" / "block_01.onnx"
    model = graph_file.read(path)
    tensor = next(t for t in model.graph.initializer if t.name == "attn1.to_v.weight")
    place = {entry.key: entry.value for entry in tensor.external_data}
    with path.with_name(place["location"]).open("r+b") as weights:
        weights.seek(int(place["offset"]))
        weights.write(np.full(int(place["length"]) // 4, 3e38, np.float32).tobytes())
    manifest = Bundle.read(root).manifest
    listed = bundles.describe(root, [root / file.path for file in manifest.files])
    bundles.save(root, msgspec.structs.replace(manifest, files=listed))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    before = files(root)
    run = ["quantize", str(root), "--recipe", "max", "--prompts", str(prompts), "--threads", "1"]
    result = CliRunner().invoke(cli, run)
    assert result.exit_code == 1
    assert "The input of block_01/attn1.to_out.0 has values" in click.unstyle(result.output)
    assert files(root) == before


def test_a_shape_that_does_not_fit_is_told_before_anything_is_played(
    root: Path, tmp_path: Path
) -> None:
    """K = 252, as the feed-forward of a small model may be."""
    path = root / "fp32" / "block_00.onnx"
    model = graph_file.read(path)
    tensor = next(t for t in model.graph.initializer if t.name == "ff.conv_point.weight")
    odd = numpy_helper.from_array(np.ones((252, tensor.dims[1]), np.float32), tensor.name)
    tensor.CopyFrom(odd)
    path.write_bytes(model.SerializeToString())
    manifest = Bundle.read(root).manifest
    fresh = bundles.describe(root, [root / file.path for file in manifest.files])
    bundles.save(root, msgspec.structs.replace(manifest, files=fresh))
    bundle = Bundle.open(root)
    with pytest.raises(QuantizationError, match=r"conv_point cannot become nvfp4.* \[252, 112\]"):
        variant.layer_formats(bundle, recipe("block_*/ff.conv_point", fmt="nvfp4"))
    assert variant.layer_formats(bundle, recipe("block_*/ff.conv_point"))


def test_without_modelopt_the_extra_is_named(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    monkeypatch.delitem(sys.modules, "sana_rt.quantize.modelopt_cpu", raising=False)
    monkeypatch.delattr("sana_rt.quantize.modelopt_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "modelopt", None)
    for name in [name for name in sys.modules if name.startswith("modelopt.")]:
        monkeypatch.delitem(sys.modules, name)
    before = files(root)
    run = ["quantize", str(root), "--recipe", "max", "--prompts", str(prompts), "--threads", "1"]
    result = CliRunner().invoke(cli, run)
    assert result.exit_code == 1
    message = " ".join(click.unstyle(result.output).split())
    assert "needs the package 'modelopt" in message
    assert 'pip install "sana-rt[build,cpu]"' in message
    assert files(root) == before


def test_a_table_of_another_algorithm_is_refused(
    root: Path, awq: CalibrationTable, tmp_path: Path
) -> None:
    before = files(root)
    path, own = tmp_path / "table.json", tmp_path / "own.toml"
    path.write_bytes(calibration_table.encode(awq))
    own.write_text(
        'name = "own"\ndescription = "q"\n[[rules]]\nlayers = ["block_*/attn1.to_q"]\n'
        'format = "nvfp4"\nreason = "r"\nsource = "s"\n'
    )
    run = ["quantize", str(root), "--recipe", str(own), "--calibration", str(path)]
    result = CliRunner().invoke(cli, [*run, "--algorithm", "max"])
    assert result.exit_code == 1
    assert "made by the algorithm 'awq-lite'" in click.unstyle(result.output)
    assert files(root) == before
    assert CliRunner().invoke(cli, [*run, "--algorithm", "awq-lite"]).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--algorithm", "awq-lite"], "--algorithm is given without a calibration"),
        (["--prompts", "p.txt", "--calibration", "t.json"], "Both --prompts and --calibration"),
        (["--save-calibration", "t.json"], "--save-calibration is given without --prompts"),
    ],
)
def test_options_that_contradict_each_other(root: Path, options: list[str], message: str) -> None:
    before = files(root)
    result = CliRunner().invoke(cli, ["quantize", str(root), "--recipe", "max", *options])
    assert result.exit_code == 2
    assert message in click.unstyle(result.output)
    assert files(root) == before
