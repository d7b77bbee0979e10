"""A backend against the CPU, graph by graph: what is right passes, and what is wrong is named."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.errors import VerificationError
from sana_rt.export.seeded import SMALL
from sana_rt.manifest import Graph, Plan, Quantization, Variant
from sana_rt.runtime.backends import onnxruntime
from sana_rt.runtime.backends.base import BackendOptions
from sana_rt.runtime.comparison import compare, reference_of
from sana_rt.runtime.tolerances import (
    BFLOAT16_ROUNDING,
    FLOAT32_TOLERANCE,
    MARGIN,
    NVFP4_TOLERANCE,
    tolerance,
)

Edit = Callable[[Variant], Variant]
GRAPH = Graph("x.onnx", (), 20, (), ())


def with_variant(bundle: Bundle, root: Path, name: str, edit: Edit) -> Bundle:
    """A copy of the bundle with another variant behind the first, which shares its files."""
    for file in bundle.manifest.files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.root / file.path, root / file.path)
    other = edit(bundle.manifest.variant("fp32"))
    variants = {**bundle.manifest.variants, name: other}
    return bundles.save(root, msgspec.structs.replace(bundle.manifest, variants=variants))


@pytest.fixture
def bent(small_bundle: Path, tmp_path: Path) -> Bundle:
    """The variant ``bent`` plays the block 1 where the block 2 should be."""

    def swap(variant: Variant) -> Variant:
        graphs = {**variant.graphs, "block_02": variant.graphs["block_01"]}
        return msgspec.structs.replace(variant, graphs=graphs)

    return with_variant(Bundle.open(small_bundle), tmp_path / "bent", "bent", swap)


def verify(bundle: Bundle, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["verify", str(bundle.root), *arguments])


def test_only_a_graph_that_is_wrong_fails(bent: Bundle) -> None:
    backend, cpu = (
        onnxruntime.cpu(BackendOptions(threads=1)),
        onnxruntime.cpu(BackendOptions(threads=1)),
    )
    found = list(compare(bent, "bent", backend, reference_of(bent.manifest, "bent"), cpu))
    assert [each.graph for each in found] == list(bent.manifest.variant("fp32").graphs)
    (wrong,) = [each for each in found if not each.passed]
    assert (wrong.graph, wrong.reference, wrong.output) == ("block_02", "fp32", "state_z_out")
    assert wrong.error > 0.1
    right = [each for each in found if each.passed]
    assert max(each.error for each in right) == 0, "the same graphs on the same device"


def test_the_command_names_what_is_wrong(bent: Bundle) -> None:
    result = verify(bent, "--backend", "onnxruntime", "--variant", "bent")
    assert result.exit_code == 1
    assert "bent/block_02" in result.stdout
    assert result.stdout.count("FAILED") == 1
    happened = "1 of 14 comparisons with the CPU failed: bent/block_02 differs in 'state_z_out' by"
    assert happened in result.stderr


def test_the_command_compares_all_that_a_backend_can_play(bent: Bundle) -> None:
    result = verify(bent, "--backend", "onnxruntime", "--json")
    facts = json.loads(result.stdout)
    assert [each["variant"] for each in facts] == ["fp32"] * 14 + ["bent"] * 14
    assert [each["graph"] for each in facts if not each["passed"]] == ["block_02"]
    assert facts[0]["dims"]["length"] == 7


def test_outputs_that_are_not_numbers_fail(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, backend, cpu = (
        Bundle.open(small_bundle),
        onnxruntime.cpu(BackendOptions(threads=1)),
        onnxruntime.cpu(BackendOptions(threads=1)),
    )
    download = backend.memory.download

    def spoiled(buffer: object) -> object:
        values = download(buffer)  # type: ignore[arg-type]
        if values.dtype == np.float32:
            values.flat[-1] = np.nan
        return values

    monkeypatch.setattr(backend.memory, "download", spoiled)
    found = {each.graph: each for each in compare(bundle, "fp32", backend, "fp32", cpu)}
    assert math.isinf(found["solver"].error)
    assert not any(each.passed for each in found.values())


def test_without_a_checkpoint_or_a_backend_there_is_nothing_to_compare(small_bundle: Path) -> None:
    result = CliRunner().invoke(cli, ["verify", str(small_bundle)])
    assert result.exit_code == 2
    assert "CHECKPOINT, or --backend" in result.stderr


def test_what_is_for_tensorrt_is_compared_with_its_emulation(
    small_bundle: Path, tmp_path: Path
) -> None:
    made = Quantization("max", "0" * 64, "device")
    manifest = Bundle.open(small_bundle).manifest
    float32 = manifest.variant("fp32")
    device = msgspec.structs.replace(float32, dtype="bfloat16", quantization=made)
    emulation = msgspec.structs.replace(
        float32, quantization=msgspec.structs.replace(made, form="emulation")
    )
    plain = msgspec.structs.replace(float32, dtype="bfloat16")
    variants = {"plain": plain, "device": device, "emulation": emulation, "fp32": float32}
    complete = msgspec.structs.replace(manifest, variants=variants)
    references = {name: reference_of(complete, name) for name in variants}
    assert references == {
        "plain": "fp32",
        "device": "emulation",
        "emulation": "fp32",
        "fp32": "fp32",
    }
    lacking = msgspec.structs.replace(manifest, variants={"device": device, "fp32": float32})
    with pytest.raises(VerificationError, match=r"(?s)its emulation .*quantize again"):
        reference_of(lacking, "device")


def variant(dtype: str, *, quantized: bool = False) -> Variant:
    made = Quantization("max", "0" * 64, "device") if quantized else None
    graphs = dict.fromkeys(("block_00", "solver", "text_encoder", "vae_decoder"), GRAPH)
    return Variant(dtype, "", msgspec.UNSET, graphs, quantization=made)  # type: ignore[arg-type]


def test_tolerances_follow_from_formats_and_depth() -> None:
    """A block's 40 roundings, a decoder's 90; what is in float32 everywhere stays strict."""
    reference = variant("float32")

    def allowed(name: str, dtype: str, *, quantized: bool = False) -> float:
        played = variant(dtype, quantized=quantized)
        return tolerance(name, played, GRAPH, reference, SMALL) - FLOAT32_TOLERANCE

    assert allowed("block_00", "float32") == 0
    assert allowed("solver", "bfloat16") == 0
    assert allowed("block_00", "bfloat16") == pytest.approx(
        MARGIN * math.sqrt(40) * BFLOAT16_ROUNDING
    )
    assert allowed("vae_decoder", "bfloat16") == pytest.approx(0.0556, rel=1e-2)
    assert allowed("text_encoder", "bfloat16") == pytest.approx(
        MARGIN * math.sqrt(12 * SMALL.text.num_layers) * BFLOAT16_ROUNDING
    )
    assert allowed("block_00", "bfloat16", quantized=True) == pytest.approx(
        allowed("block_00", "bfloat16") + NVFP4_TOLERANCE
    )
    assert allowed("vae_decoder", "float32", quantized=True) == 0


def test_a_plan_in_tf32_may_be_off_by_more() -> None:
    reference = variant("float32")
    plan = Plan(
        "x.plan", "x.log", "rtx", "1.7", "12.0", {}, msgspec.UNSET,  # type: ignore[arg-type]
        {"tf32": "true"}, (), (), 0, 0, True,
    )  # fmt: skip
    strict = msgspec.structs.replace(plan, options={"tf32": "false"})
    loose, exact = (
        tolerance("block_00", reference, each, reference, SMALL) for each in (plan, strict)
    )
    assert exact == FLOAT32_TOLERANCE
    assert loose == pytest.approx(exact + MARGIN * math.sqrt(40) * 2.0**-11)
