"""Verification finds what differs, and what is damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.errors import VerificationError
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
from sana_rt.manifest import BuiltFrom, Graph, Plan, Quantization, Source, Verification

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


def findings(bundle: Bundle, checkpoint: Checkpoint) -> dict[str, Finding]:
    return {each.what: each for each in verify_bundle(bundle, checkpoint)}


def outcomes(bundle: Bundle, checkpoint: Checkpoint) -> dict[str, str]:
    return {each.what: each.outcome for each in verify_bundle(bundle, checkpoint)}


def replaced(bundle: Bundle, **changes: object) -> Bundle:
    """The bundle with another variant ``fp32``; nothing is written."""
    variant = msgspec.structs.replace(bundle.manifest.variant("fp32"), **changes)
    return Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, variants={"fp32": variant}))


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
    assert {name: each.outcome for name, each in found.items()} == {
        "files": "ok",
        "model": "ok",
        "tokenizer": "not checked",  # the bundle has none
        "fp32/timestep": "ok",
        "fp32/final_layer": "ok",
    }
    assert found["fp32/timestep"].verification is not None


def test_a_damaged_file_is_found_and_its_graph_is_not_run(
    bundle: Bundle, checkpoint: Checkpoint
) -> None:
    path = bundle.root / "fp32/timestep.weights"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    found = findings(bundle, checkpoint)
    assert found["files"].outcome == "failed"
    assert "timestep.weights has SHA-256" in found["files"].message
    assert found["fp32/timestep"].outcome == "not checked"
    assert "damaged" in found["fp32/timestep"].message
    assert found["fp32/final_layer"].outcome == "ok"
    path.unlink()
    assert "timestep.weights is missing" in next(verify_bundle(bundle, checkpoint)).message


def test_a_wrong_weight_is_found(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Its hash is right: what is compared is what it computes."""
    path = bundle.root / "fp32/final_layer.weights"
    weights = np.fromfile(path, np.float32)
    weights[5] += 0.1
    weights.tofile(path)
    found = findings(keep(bundle, CHEAP), checkpoint)
    assert found["files"].outcome == found["fp32/timestep"].outcome == "ok"
    assert found["fp32/final_layer"].outcome == "failed"
    verification = found["fp32/final_layer"].verification
    assert verification is not None
    assert 1e-3 < verification.max_error < 1


def test_a_wrong_constant_is_found(bundle: Bundle, checkpoint: Checkpoint) -> None:
    path = bundle.root / "fp32/final_layer.onnx"
    model = onnx.load(path, load_external_data=False)
    (norm,) = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    epsilon = next(each for each in norm.attribute if each.name == "epsilon")
    epsilon.f = 1e-2
    onnx.save(model, path)
    assert outcomes(keep(bundle, CHEAP), checkpoint)["fp32/final_layer"] == "failed"


def test_a_file_that_is_no_graph_fails_although_its_hash_is_right(
    bundle: Bundle, checkpoint: Checkpoint
) -> None:
    (bundle.root / "fp32/final_layer.onnx").write_bytes(b"")
    (bundle.root / "fp32/timestep.onnx").write_bytes(b"\x08\x08 garbage")
    found = findings(keep(bundle, CHEAP), checkpoint)
    assert found["files"].outcome == "ok"
    assert found["fp32/timestep"].outcome == found["fp32/final_layer"].outcome == "failed"
    assert "it is empty" in found["fp32/final_layer"].message


def test_a_recorded_error_above_its_tolerance_fails(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Of a variant that is compared, and of one that is not: the record is of the export."""
    graph = bundle.manifest.variant("fp32").graphs["timestep"]
    assert graph.verification is not None
    above = msgspec.structs.replace(graph.verification, max_error=1.0)
    graphs = {"timestep": msgspec.structs.replace(graph, verification=above)}
    made = Quantization("paper", "0" * 64, "emulation")
    for quantization in (None, made):
        changed = replaced(bundle, graphs=graphs, quantization=quantization)
        (found,) = [e for e in verify_bundle(changed, checkpoint) if e.outcome == "failed"]
        assert (found.what, found.message) == (
            "fp32/timestep",
            "recorded at export, above its tolerance",
        )
        assert found.verification == above


@pytest.mark.parametrize(
    ("graph", "part"), [("vae_encoder", "vae"), ("text_encoder", "text_encoder")]
)
def test_a_graph_of_a_part_that_is_not_given_is_not_checked(
    graph: str, part: str, small_bundle: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(small_bundle, tmp_path / "bundle")
    bundle = keep(Bundle.open(tmp_path / "bundle"), ("solver", graph))
    alone = dataclasses.replace(checkpoint, **{part: None})
    found = findings(bundle, alone)
    assert found[f"fp32/{graph}"].outcome == "not checked"
    assert f"--{part.replace('_', '-')}" in found[f"fp32/{graph}"].message
    assert found["fp32/solver"].outcome == "ok"
    assert verify.is_of(bundle, alone) is None
    assert verify.is_of(bundle, checkpoint) is True


def test_what_is_not_of_the_checkpoint_is_not_compared(
    bundle: Bundle, checkpoint: Checkpoint
) -> None:
    other = Source("another", "diffusers", "1" * 64)
    changed = replaced(bundle, source=other)
    assert verify.is_of(changed, checkpoint) is False
    found = findings(changed, checkpoint)["fp32"]
    assert found.outcome == "not checked"
    assert "of another checkpoint: another, SHA-256 1111" in found.message


def test_quantized_variants_and_plans_are_not_checked(
    bundle: Bundle, checkpoint: Checkpoint
) -> None:
    variant = bundle.manifest.variant("fp32")
    current = bundle.manifest.built_from("fp32", "timestep")
    stale = msgspec.structs.replace(current, graph="0" * 64)
    plans = {
        "timestep": _plan(variant.graphs["timestep"], current),
        "final_layer": _plan(variant.graphs["final_layer"], stale),
    }
    made = Quantization("paper", "0" * 64, "device")
    changed = replaced(bundle, quantization=made, plans={"sm120": plans})
    found = findings(changed, checkpoint)
    assert set(found) == {"files", "model", "tokenizer", "fp32", "fp32 for sm120"}
    assert found["fp32"].outcome == found["fp32 for sm120"].outcome == "not checked"
    assert "quantized" in found["fp32"].message
    assert "2 of 2 are of other graphs" in found["fp32 for sm120"].message


def _plan(graph: Graph, source: BuiltFrom) -> Plan:
    files, options = ("p", "l"), {"tf32": "false"}
    return Plan(
        *files, "rtx", "1.7", "12.0", {}, source, options, graph.inputs, graph.outputs, 0, 0, True
    )


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (
            "text_encoder/config.json",
            {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8},
            "text.num_heads is 4 in the bundle, 8 in the checkpoint",
        ),
        (
            "text_encoder/config.json",
            {"attn_logit_softcapping": 30.0},
            "text.attn_logit_softcap is 50.0 in the bundle, 30.0 in the checkpoint",
        ),
        (
            "scheduler/scheduler_config.json",
            {"flow_shift": 3.0},
            "sampling.flow_shift is 8.0 in the bundle, 3.0 in the checkpoint",
        ),
    ],
)
def test_another_configuration_of_the_same_weights_is_named_field_by_field(
    file: str, change: dict[str, object], said: str, bundle: Bundle, small_checkpoint: Path
) -> None:
    folder = shutil.copytree(small_checkpoint, bundle.root.parent / "checkpoint")
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if file.startswith("scheduler"):
        (folder / "sana_rt.json").unlink()
    other = open_checkpoint(folder, preset=bundle.manifest.model)
    assert verify.is_of(bundle, other) is True, "the weights are the same"
    found = findings(bundle, other)["model"]
    assert found.outcome == "failed"
    assert said in found.message


def test_another_tokenizer_is_found(
    small_bundle: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    manifest = msgspec.structs.replace(Bundle.open(small_bundle).manifest, variants={})
    bundle = Bundle(small_bundle, manifest)
    assert outcomes(bundle, checkpoint)["tokenizer"] == "ok"
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    given = dataclasses.replace(checkpoint, tokenizer=other)
    assert outcomes(bundle, given)["tokenizer"] == "failed"


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
