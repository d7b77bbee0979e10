"""``sana-rt quantize``: what it adds to a bundle, and that a failure changes nothing."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper

from sana_rt import bundle as bundles
from sana_rt import bundle_writer
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.errors import (
    BundleFileError,
    LockedError,
    QuantizationError,
    RecipeError,
    StorageError,
    UsageError,
)
from sana_rt.files import lock
from sana_rt.manifest import Lora, Quantization, Source
from sana_rt.quantize import graph_file, nvfp4, recipe, variant
from sana_rt.quantize.minifloat import CodeArray
from sana_rt.quantize.nvfp4 import NVFP4Tensor
from sana_rt.quantize.recipe import LoadedRecipe, Recipe, Rule

QUERY = "attn1.to_q"


def only(*layers: str, fmt: recipe.Format = "nvfp4") -> LoadedRecipe:
    return LoadedRecipe(Recipe("own", "own", (Rule(layers, fmt, "r", "s"),)), "0" * 64)


@pytest.fixture
def root(block_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(block_bundle, tmp_path / "bundle"))


def snapshot(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def raw(model: onnx.ModelProto, name: str, folder: Path) -> CodeArray:
    tensor = next(each for each in model.graph.initializer if each.name == name)
    if tensor.external_data:
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    return np.frombuffer(tensor.raw_data, np.uint8)


def test_two_variants_from_one_recipe(root: Path) -> None:
    before = Bundle.open(root).manifest
    manifest = variant.quantize_bundle(root, only("*attn1.to_[qkv]", "block_*/ff.*")).manifest
    assert list(manifest.variants) == ["fp32", "bf16", "nvfp4-own", "nvfp4-own-emulation"]
    device, emulation = manifest.variant("nvfp4-own"), manifest.variant("nvfp4-own-emulation")
    assert (device.dtype, emulation.dtype) == ("bfloat16", "float32")
    assert device.quantization == Quantization("own", "0" * 64, "device")
    assert emulation.quantization == Quantization("own", "0" * 64, "emulation")
    assert device.source == emulation.source == before.variant("fp32").source
    for name in ("fp32", "bf16"):
        assert manifest.variant(name) == before.variant(name)
    for file in Bundle.open(root).manifest.files:
        Bundle.open(root).check_hash(file)


def test_weights_of_both_agree_bit_for_bit(root: Path) -> None:
    """The packed bits of the device graph, decoded, are the emulation's floats."""
    bundle = variant.quantize_bundle(root, only("block_*/attn1.to_q", "block_*/ff.conv_temp*"))
    for graph in ("block_00", "block_01"):
        device, emulation = (
            bundle.path(bundle.manifest.variant(name).graphs[graph].path)
            for name in ("nvfp4-own", "nvfp4-own-emulation")
        )
        packed, floats = graph_file.read(device), graph_file.read(emulation)
        for node in (QUERY, "ff.conv_temp", "ff.conv_temp.1"):
            name = f"{node}/weight"
            scale = raw(packed, f"{name}_global_scale", device.parent).view(np.float32)[0]
            values = graph_file.value(floats, name, emulation.parent)
            k, n = values.shape
            tensor = NVFP4Tensor(
                raw(packed, f"{name}_codes", device.parent).reshape(n, k // 2),
                raw(packed, f"{name}_block_scales", device.parent).reshape(n, k // 16),
                scale,
            )
            assert np.array_equal(nvfp4.dequantize(tensor).T, values)


def test_graphs_without_quantized_layers_are_shared(root: Path) -> None:
    manifest = variant.quantize_bundle(root, only("block_00/attn1.to_q")).manifest
    for base, name in (("bf16", "nvfp4-own"), ("fp32", "nvfp4-own-emulation")):
        shared = manifest.variant(base).graphs["block_01"]
        assert manifest.variant(name).graphs["block_01"] == shared
        assert (
            manifest.variant(name).graphs["block_00"] != manifest.variant(base).graphs["block_00"]
        )
    added = [file for file in manifest.files if file.path.startswith("nvfp4-own")]
    assert len(added) == 4  # block_00 and its weights, twice


def test_what_is_not_quantized_keeps_its_values(root: Path) -> None:
    bundle = variant.quantize_bundle(root, only("block_00/attn1.to_q"))
    for base, name in (("bf16", "nvfp4-own"), ("fp32", "nvfp4-own-emulation")):
        paths = [
            bundle.path(bundle.manifest.variant(each).graphs["block_00"].path)
            for each in (base, name)
        ]
        models = [graph_file.read(path) for path in paths]
        kept = {tensor.name for tensor in models[0].graph.initializer} - {f"{QUERY}.weight"}
        values = [
            {each: graph_file.value(model, each, path.parent) for each in kept}
            for model, path in zip(models, paths, strict=True)
        ]
        assert all(np.array_equal(values[0][each], values[1][each]) for each in kept)
        assert f"{QUERY}.weight" not in {each.name for each in models[1].graph.initializer}


def test_the_device_graph_is_smaller_and_has_no_float32_pass_in_front(root: Path) -> None:
    bundle = variant.quantize_bundle(
        root, only("block_*/attn1.*", "block_*/attn2.*", "block_*/ff.*")
    )
    files = {file.path: file.bytes for file in bundle.manifest.files}
    graph = bundle.manifest.variant("nvfp4-own").graphs["block_00"]
    assert (
        files[graph.weights[0]] < 0.45 * files["bf16/block_00.weights"]
    )  # 4.5 bits a weight instead of 16
    model = graph_file.read(bundle.path(graph.path))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    quantizers = [node for node in model.graph.node if node.op_type == "TRT_FP4DynamicQuantize"]
    assert len(quantizers) == 8  # q, k and v share one
    for node in quantizers:
        assert types[node.input[0]] == TensorProto.BFLOAT16


def test_a_bundle_with_one_dtype_gets_one_variant(root: Path) -> None:
    bundle = Bundle.open(root)
    fp32 = {"fp32": bundle.manifest.variant("fp32")}
    kept = set(fp32["fp32"].paths())
    files = tuple(file for file in bundle.manifest.files if file.path in kept)
    bundles.save(root, msgspec.structs.replace(bundle.manifest, variants=fp32, files=files))
    manifest = variant.quantize_bundle(root, only("*to_q")).manifest
    assert list(manifest.variants) == ["fp32", "nvfp4-own-emulation"]


def test_quantizing_again_replaces_the_variant(root: Path) -> None:
    variant.quantize_bundle(root, only("block_*/attn1.to_q"))
    first = snapshot(root)
    manifest = variant.quantize_bundle(root, only("block_*/attn1.to_k")).manifest
    assert list(manifest.variants)[-2:] == ["nvfp4-own", "nvfp4-own-emulation"]
    again = variant.quantize_bundle(root, only("block_*/attn1.to_q"))
    assert snapshot(root) == first, "the same recipe gives the same bytes, and nothing is left"
    assert set(snapshot(root)) == {file.path for file in again.manifest.files} | {"manifest.json"}


def test_a_recipe_finds_its_variants_by_what_made_them(root: Path) -> None:
    """Not by their names, which are only those of new ones."""
    loaded = only("block_*/attn1.to_q")
    manifest = variant.quantize_bundle(root, loaded).manifest
    variants = dict(manifest.variants)
    for form in ("", "-emulation"):
        variants[f"mine{form}"] = variants.pop(f"nvfp4-own{form}")
    bundles.save(root, msgspec.structs.replace(manifest, variants=variants))
    after = variant.quantize_bundle(root, loaded).manifest
    assert list(after.variants) == ["fp32", "bf16", "mine", "mine-emulation"]
    assert variant.variant_names(after, "own", "fp32") == ["mine", "mine-emulation"]


def test_the_variant_of_another_is_not_replaced(root: Path) -> None:
    manifest = Bundle.open(root).manifest
    variants = {**manifest.variants, "nvfp4-own": manifest.variant("bf16")}
    bundles.save(root, msgspec.structs.replace(manifest, variants=variants))
    before = snapshot(root)
    with pytest.raises(UsageError, match=r"has a variant 'nvfp4-own', which .* did not make"):
        variant.quantize_bundle(root, only("block_*/attn1.to_q"))
    assert snapshot(root) == before


def test_weights_come_from_the_same_checkpoint(root: Path) -> None:
    """A bfloat16 variant of other weights is no base for the device variant."""
    manifest = Bundle.open(root).manifest
    lora = msgspec.structs.replace(
        manifest.variant("bf16"), source=Source("lora", "diffusers", "1" * 64)
    )
    variants = {"fp32": manifest.variant("fp32"), "bf16": lora}
    bundles.save(root, msgspec.structs.replace(manifest, variants=variants))
    after = variant.quantize_bundle(root, only("block_*/attn1.to_q")).manifest
    assert list(after.variants) == ["fp32", "bf16", "nvfp4-own-emulation"]


def own_recipe(folder: Path) -> Path:
    path = folder / "own.toml"
    path.write_text(
        'name = "own"\ndescription = "one layer"\n[[rules]]\nlayers = ["block_*/attn1.to_q"]\n'
        'format = "nvfp4"\nreason = "r"\nsource = "s"\n'
    )
    return path


def with_lora(root: Path, sha256: str) -> None:
    """Say that the float32 variant has a LoRA, and take the bfloat16 one away."""
    manifest = Bundle.open(root).manifest
    plain = manifest.variant("fp32")
    base = msgspec.structs.replace(plain.source, sha256=plain.source.base, merged=None)
    source = base.with_loras([Lora("style", sha256, 0.8)])
    others = {name: each for name, each in manifest.variants.items() if name != "bf16"}
    variants = {**others, "fp32": msgspec.structs.replace(plain, source=source)}
    bundles.save(root, msgspec.structs.replace(manifest, variants=variants))


def test_a_lora_that_was_trained_further_replaces_its_variant(root: Path) -> None:
    for digit in "12":
        with_lora(root, digit * 64)
        manifest = variant.quantize_bundle(root, only("block_*/attn1.to_q")).manifest
        assert list(manifest.variants) == ["fp32", "nvfp4-own-emulation-style-0.8"]
        source = manifest.variant("nvfp4-own-emulation-style-0.8").source
        assert source == manifest.variant("fp32").source


def test_what_is_missing_of_a_lora_is_made_with_it(root: Path, tmp_path: Path) -> None:
    with_lora(root, "1" * 64)
    made = CliRunner().invoke(cli, ["quantize", str(root), "--recipe", str(own_recipe(tmp_path))])
    assert made.exit_code == 0, made.output
    said = " ".join(made.stderr.split())
    assert "nvfp4-own-style-0.8 was not made: " in said
    assert "no bfloat16 variant of these weights to make it from." in said
    assert f"sana-rt export CHECKPOINT {root} --dtype bf16 --lora style=0.8`" in said


def test_a_recipe_without_nvfp4_is_called_after_fp8(root: Path) -> None:
    manifest = variant.quantize_bundle(root, only("block_*/attn1.to_q", fmt="fp8")).manifest
    assert list(manifest.variants)[-2:] == ["fp8-own", "fp8-own-emulation"]


def poison(root: Path, value: float) -> None:
    """Write ``value`` into block_01's to_q and list the file with its new hash."""
    path = root / "fp32" / "block_01.onnx"
    model = graph_file.read(path)
    tensor = next(t for t in model.graph.initializer if t.name == f"{QUERY}.weight")
    offset = next(int(e.value) for e in tensor.external_data if e.key == "offset")
    weights = path.with_suffix(".weights")
    data = bytearray(weights.read_bytes())
    data[offset : offset + 4] = np.float32(value).tobytes()
    weights.write_bytes(bytes(data))
    manifest = Bundle.open(root).manifest
    fresh = bundles.describe(root, [root / file.path for file in manifest.files])
    bundles.save(root, msgspec.structs.replace(manifest, files=fresh))


def test_weights_that_are_not_those_listed_are_not_quantized(root: Path) -> None:
    weights = root / "fp32" / "block_01.weights"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    before = snapshot(root)
    with pytest.raises(BundleFileError, match=r"block_01\.weights has SHA-256"):
        variant.quantize_bundle(root, only("block_*/attn1.to_q"))
    assert snapshot(root) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("fmt", ["nvfp4", "fp8"])
def test_bad_weights_name_the_layer(root: Path, value: float, fmt: recipe.Format) -> None:
    poison(root, value)
    before = snapshot(root)
    with pytest.raises(QuantizationError, match=r"block_01/attn1\.to_q cannot become .* NaN"):
        variant.quantize_bundle(root, only("block_*/attn1.to_q", fmt=fmt))
    assert snapshot(root) == before


def test_a_recipe_for_another_model_changes_nothing(root: Path) -> None:
    before = snapshot(root)
    with pytest.raises(RecipeError, match="matches no layer"):
        variant.quantize_bundle(root, recipe.load("paper"))  # there is no prompt graph
    with pytest.raises(UsageError, match="quantizes nothing"):
        variant.quantize_bundle(root, recipe.UNQUANTIZED)
    assert snapshot(root) == before


def test_a_failure_half_way_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(root)

    def stop(name: str, done: int, total: int) -> None:
        if done == 1:
            raise StorageError("no room")

    with pytest.raises(StorageError):
        variant.quantize_bundle(root, only("*to_q"), progress=stop)
    assert snapshot(root) == before


def test_what_an_interruption_left_is_cleared(root: Path) -> None:
    (root / "nvfp4-own" / "device").mkdir(parents=True)
    (root / "nvfp4-own" / "device" / "block_00.onnx.partial").write_bytes(b"half")
    bundle = variant.quantize_bundle(root, only("*to_q"))
    assert set(snapshot(root)) == {file.path for file in bundle.manifest.files} | {"manifest.json"}


def test_another_writer_is_waited_for_by_nobody(root: Path) -> None:
    with lock(root), pytest.raises(LockedError):
        variant.quantize_bundle(root, only("*to_q"))


def test_k_that_is_no_multiple_of_sixteen_names_the_layer(root: Path) -> None:
    """The same layer can still become FP8."""
    path = root / "fp32" / "block_00.onnx"
    model = graph_file.read(path)
    tensor = next(t for t in model.graph.initializer if t.name == f"{QUERY}.weight")
    value = graph_file.value(model, tensor.name, path.parent)[:-8]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    path.write_bytes(model.SerializeToString())
    manifest = Bundle.read(root).manifest
    fresh = bundles.describe(root, [root / file.path for file in manifest.files])
    bundles.save(root, msgspec.structs.replace(manifest, files=fresh))
    with pytest.raises(QuantizationError, match=r"block_00/attn1\.to_q cannot become nvfp4.*104"):
        variant.quantize_bundle(root, only("*to_q"))
    variant.quantize_bundle(root, only("block_*/attn1.to_q", fmt="fp8"))


def reasons(root: Path, loaded: LoadedRecipe, **calibration: object) -> dict[str, tuple[str, ...]]:
    return variant.reasons(Bundle.open(root), loaded, calibration)


def test_what_is_current_is_not_quantized_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = only("block_*/attn1.to_q")
    names = ("nvfp4-own", "nvfp4-own-emulation")
    assert reasons(root, loaded) == dict.fromkeys(names, ("never made",))
    made = variant.quantize_bundle(root, loaded)
    assert reasons(root, loaded) == dict.fromkeys(names, ())
    other = replace(loaded, sha256="1" * 64)
    assert reasons(root, other) == dict.fromkeys(names, ("the recipe changed",))
    asked = reasons(root, loaded, algorithm="max", prompts_sha256="2" * 64)
    assert asked["nvfp4-own"] == (
        "calibration: algorithm was None, is max",
        f"calibration: prompts_sha256 was None, is {'2' * 64}",
    )
    path = made.path(made.manifest.variant("nvfp4-own-emulation").graphs["block_01"].path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = reasons(root, loaded)
    assert found["nvfp4-own"] == ()
    assert found["nvfp4-own-emulation"][0].startswith("damaged: ")
    path.write_bytes(whole)
    again = made.manifest.variant("bf16")
    changed = made.manifest.with_variants({"bf16": msgspec.structs.replace(again, maker="another")})
    bundles.save(root, changed)
    (reason,) = reasons(root, loaded)["nvfp4-own"]
    assert reason.startswith("maker was "), "the base was exported by another maker"
    assert reason.endswith("; of another")


def test_the_command_quantizes_once_and_says_what_is_missing(root: Path, tmp_path: Path) -> None:
    recipe_file = own_recipe(tmp_path)
    bundle_writer.remove_variant(root, "bf16")
    arguments = ["quantize", str(root), "--recipe", str(recipe_file)]
    first = CliRunner().invoke(cli, arguments)
    assert first.exit_code == 0, first.output
    said = " ".join(first.stderr.split())
    assert "nvfp4-own was not made: the bundle has no bfloat16 variant of these " in said
    assert f"sana-rt export CHECKPOINT {root} --dtype bf16" in first.stderr
    build = CliRunner().invoke(cli, ["build", str(root), "--variant", "nvfp4-own"])
    assert build.exit_code == 2
    assert "--dtype bf16" in build.stderr
    before = snapshot(root)
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 0
    assert "Current: nvfp4-own-emulation; --force quantizes again." in again.stderr
    assert again.stdout == first.stdout
    assert snapshot(root) == before
    assert CliRunner().invoke(cli, [*arguments, "--force"]).exit_code == 0
    assert snapshot(root) != before, "in another folder"
