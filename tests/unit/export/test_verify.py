"""Verification finds what differs, and what is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.errors import BundleFileError, VerificationError
from sana_rt.export import verify
from sana_rt.export.checkpoint import Checkpoint, open_checkpoint
from sana_rt.export.graphs import definitions, transformer_graphs
from sana_rt.export.onnx_export import TRACE_SIZES, write_graph
from sana_rt.export.seeded import SMALL, seeded_tensor, write_checkpoint
from sana_rt.export.trace import trace
from sana_rt.export.verify import (
    BFLOAT16_TOLERANCE,
    DEEP_TOLERANCE,
    Finding,
    compare,
    require,
    verify_bundle,
)
from sana_rt.export.weights import LazyTensor, Weights
from sana_rt.manifest import Quantization, Verification

CHEAP = ("timestep", "final_layer")


@pytest.fixture
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(small_checkpoint)


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Bundle:
    """A copy with two graphs, to damage."""
    root = tmp_path / "bundle"
    shutil.copytree(small_bundle, root)
    return keep(Bundle.open(root), CHEAP)


def keep(bundle: Bundle, names: tuple[str, ...]) -> Bundle:
    manifest = bundle.manifest
    variant = manifest.variant("fp32")
    graphs = {name: variant.graphs[name] for name in names}
    paths = {path for each in graphs.values() for path in (each.path, *each.weights)}
    return bundles.save(
        bundle.root,
        msgspec.structs.replace(
            manifest,
            files=bundles.describe(bundle.root, [bundle.root / path for path in paths]),
            variants={"fp32": msgspec.structs.replace(variant, graphs=graphs, decoder=None)},
            tokenizer=None,
        ),
    )


def findings(bundle: Bundle, checkpoint: Checkpoint) -> dict[str | None, Finding]:
    return {each.graph: each for each in verify_bundle(bundle, checkpoint)}


def test_every_graph_of_the_small_bundle_was_compared_at_two_sizes(small_bundle: Path) -> None:
    graphs = Bundle.open(small_bundle).manifest.variant("fp32").graphs
    assert len(graphs) == 14
    for graph in graphs.values():
        found = graph.verification
        assert found is not None
        assert 0 <= found.max_error <= found.tolerance <= 1e-4
        assert "PyTorch" in found.reference
        first, second = found.dims
        assert first.keys() == second.keys()
        assert all(first[name] != second[name] for name in first)
        assert 1 in second.values()


def test_a_sound_bundle_passes(bundle: Bundle, checkpoint: Checkpoint) -> None:
    found = findings(bundle, checkpoint)
    assert set(found) == {None, *CHEAP}
    assert all(each.passed for each in found.values())
    assert found["timestep"].verification is not None


def test_a_damaged_file_is_found(bundle: Bundle, checkpoint: Checkpoint) -> None:
    path = bundle.root / "fp32/timestep.weights"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    found = next(verify_bundle(bundle, checkpoint))
    assert not found.passed
    assert "timestep.weights has SHA-256" in found.message
    path.unlink()
    assert "timestep.weights is missing" in next(verify_bundle(bundle, checkpoint)).message


def test_a_wrong_weight_is_found(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Its hash is right: what is compared is what it computes."""
    path = bundle.root / "fp32/final_layer.weights"
    weights = np.fromfile(path, np.float32)
    weights[5] += 0.1
    weights.tofile(path)
    found = findings(keep(bundle, CHEAP), checkpoint)
    assert found[None].passed
    assert found["timestep"].passed
    assert not found["final_layer"].passed
    verification = found["final_layer"].verification
    assert verification is not None
    assert 1e-3 < verification.max_error < 1


def test_a_wrong_constant_is_found(bundle: Bundle, checkpoint: Checkpoint) -> None:
    path = bundle.root / "fp32/final_layer.onnx"
    model = onnx.load(path, load_external_data=False)
    (norm,) = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    epsilon = next(each for each in norm.attribute if each.name == "epsilon")
    epsilon.f = 1e-2
    onnx.save(model, path)
    assert not findings(keep(bundle, CHEAP), checkpoint)["final_layer"].passed


def test_a_graph_of_a_part_that_is_not_given_fails(
    small_bundle: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(small_bundle, tmp_path / "bundle")
    bundle = keep(Bundle.open(tmp_path / "bundle"), ("vae_encoder",))
    alone = Checkpoint("c", "original", checkpoint.spec, checkpoint.transformer)
    found = findings(bundle, alone)["vae_encoder"]
    assert not found.passed
    assert "not in the checkpoint given" in found.message


def test_a_quantized_variant_is_left_out(bundle: Bundle, checkpoint: Checkpoint) -> None:
    made = Quantization("paper", "0" * 64, "emulation")
    variant = msgspec.structs.replace(bundle.manifest.variant("fp32"), quantization=made)
    manifest = msgspec.structs.replace(bundle.manifest, variants={"nvfp4": variant})
    found = findings(Bundle(bundle.root, manifest), checkpoint)
    assert len(found) == 1
    assert "quantized" in found[None].message


def _seeded(bundle: Bundle) -> Weights:
    return Weights(
        {
            name: LazyTensor(shape, lambda name=name, shape=shape: seeded_tensor(name, shape, 0))
            for name, shape in verify_shapes(bundle).items()
        }
    )


def test_a_bfloat16_block_is_its_module(block_bundle: Path) -> None:
    """Widened to float32, a bfloat16 graph computes what the module with rounded weights does."""
    bundle = Bundle.open(block_bundle)
    spec = bundle.manifest.model
    checkpoint = Checkpoint("seeded", "original", spec, _seeded(bundle))
    block = next(each for each in transformer_graphs(spec, "bfloat16") if each.name == "block_01")
    found = compare(block, block_bundle / "bf16/block_01.onnx", checkpoint)
    assert found.tolerance == BFLOAT16_TOLERANCE
    # far below the tolerance: the constants of a block are exact in bfloat16
    assert found.max_error < 2e-5
    assert "widened" in found.reference


def test_weights_outside_of_the_bundle_are_not_read(block_bundle: Path, tmp_path: Path) -> None:
    """Whatever a graph says, also if its hash is right."""
    bundle = Bundle.open(shutil.copytree(block_bundle, tmp_path / "bundle"))
    path = bundle.root / "bf16/block_01.onnx"
    graph = onnx.load(path, load_external_data=False)
    secret = tmp_path / "secret.weights"
    shutil.copyfile(path.with_suffix(".weights"), secret)
    for place in ("../../secret.weights", str(secret)):
        for tensor in graph.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place
        path.write_bytes(graph.SerializeToString())
        (block,) = [
            each
            for each in transformer_graphs(bundle.manifest.model, "bfloat16")
            if each.name == "block_01"
        ]
        checkpoint = Checkpoint("seeded", "original", bundle.manifest.model, _seeded(bundle))
        with pytest.raises(BundleFileError, match=r"secret\.weights"):
            compare(block, path, checkpoint)


def test_a_bfloat16_block_sums_its_softmax_in_float32(block_bundle: Path) -> None:
    model = onnx.load(block_bundle / "bf16/block_01.onnx", load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    (softmax,) = [node for node in graph.node if node.op_type == "Softmax"]
    assert types[softmax.input[0]] == onnx.TensorProto.FLOAT


def test_a_bfloat16_text_encoder_of_any_width_is_its_module(tmp_path: Path) -> None:
    """The root of 40 is not exact in bfloat16: the module takes the graph's rounded one."""
    text = msgspec.structs.replace(SMALL.text, hidden_size=40)
    transformer = msgspec.structs.replace(SMALL.transformer, caption_channels=40, num_layers=1)
    spec = msgspec.structs.replace(SMALL, text=text, transformer=transformer)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", spec=spec))
    graphs = {each.name: each for each in definitions(checkpoint, "bfloat16")}
    encoder = graphs["text_encoder"]
    topology = trace(encoder, TRACE_SIZES.dims(spec))
    graph = write_graph(topology, encoder, checkpoint.part("text_encoder"), tmp_path / "bf16")
    found = compare(encoder, tmp_path / graph.path, checkpoint)
    assert found.max_error < DEEP_TOLERANCE


def verify_shapes(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    from sana_rt.export import tensor_shapes

    return tensor_shapes.transformer(bundle.manifest.model)


@pytest.mark.parametrize("error", [2e-5, float("nan")])
def test_an_error_above_the_tolerance_is_raised(error: float) -> None:
    found = Verification(error, 1e-5, "a module", ())
    with pytest.raises(VerificationError, match="'block_00' differs"):
        require("block_00", found)
    assert require("block_00", msgspec.structs.replace(found, max_error=1e-5))


def test_bytes_may_lie_on_either_side_of_an_edge() -> None:
    wanted = np.full((10, 100), 100, np.uint8)
    off_by_one, off_by_two = wanted.copy(), wanted.copy()
    off_by_one[0, 0] += 1
    off_by_two[0, 0] += 2
    assert verify._error(off_by_one, wanted) == pytest.approx(1 / 1000 / 255)
    assert verify._error(off_by_two, wanted) == pytest.approx(1 / 255)
    assert verify._error(wanted + np.uint8(1), wanted) == pytest.approx(1 / 255)
