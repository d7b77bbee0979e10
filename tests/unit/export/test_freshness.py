"""When an export has nothing to do, and why it has something to do otherwise."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.export import freshness, onnx_export
from sana_rt.export.checkpoint import Checkpoint, open_checkpoint
from sana_rt.export.graphs import GraphDefinition, transformer_graphs
from sana_rt.export.onnx_export import ExportOptions, export_bundle
from sana_rt.export.trace import Topology, trace


@pytest.fixture(scope="module")
def topologies() -> dict[str, Topology]:
    return {}


@pytest.fixture(autouse=True)
def _two_graphs(monkeypatch: pytest.MonkeyPatch, topologies: dict[str, Topology]) -> None:
    """Export two graphs, and trace each once for all tests."""

    def definitions(checkpoint: Checkpoint, dtype: Any) -> list[GraphDefinition]:
        graphs = transformer_graphs(checkpoint.spec, dtype)
        return [each for each in graphs if each.name in ("rope", "solver")]

    def traced(definition: GraphDefinition, dims: dict[str, int]) -> Topology:
        key = f"{definition.name} {definition.dtype}"
        if key not in topologies:
            topologies[key] = trace(definition, dims)
        return topologies[key]

    monkeypatch.setattr(onnx_export, "definitions", definitions)
    monkeypatch.setattr(onnx_export, "trace", traced)


@pytest.fixture
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(small_checkpoint)


@pytest.fixture
def root(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return export_bundle(checkpoint, tmp_path / "bundle").root


def test_every_part_of_the_key_is_a_reason_of_its_own(
    checkpoint: Checkpoint,
    small_checkpoint: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ExportOptions()
    assert freshness.reasons(root, checkpoint, options) == ()
    assert freshness.reasons(root, checkpoint, replace(options, verify=False)) == ()
    for other in (ExportOptions("bfloat16"), replace(options, variant="other")):
        assert freshness.reasons(root, checkpoint, other) == (freshness.NEVER,)
    assert freshness.reasons(tmp_path / "none", checkpoint, options) == (freshness.NEVER,)
    bfloat16 = ExportOptions("bfloat16", "fp32")
    assert freshness.reasons(root, checkpoint, bfloat16) == ("dtype was float32, is bfloat16",)

    copy = shutil.copytree(small_checkpoint, tmp_path / "renamed")
    assert freshness.reasons(root, open_checkpoint(copy), options) == ()
    told = open_checkpoint(copy, instruction="none")
    assert freshness.reasons(root, told, options) == ("the model changed",)
    tokenizer = copy / "tokenizer/tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    assert freshness.reasons(root, open_checkpoint(copy), options) == ("the tokenizer changed",)
    weights = copy / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert "the checkpoint changed" in freshness.reasons(root, open_checkpoint(copy), options)

    made = freshness.maker()
    monkeypatch.setattr(freshness, "maker", lambda: "sana-rt 0.2.0")
    assert freshness.reasons(root, checkpoint, options) == (f"maker was {made}, is sana-rt 0.2.0",)


def test_a_variant_that_was_not_compared_is_not_one_that_was(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    root = export_bundle(checkpoint, tmp_path, ExportOptions(verify=False)).root
    assert freshness.reasons(root, checkpoint, ExportOptions(verify=False)) == ()
    (reason,) = freshness.reasons(root, checkpoint, ExportOptions())
    assert reason == "compared with modules was False, is True"


def test_a_damaged_file_is_a_reason(checkpoint: Checkpoint, root: Path) -> None:
    path = root / "fp32/rope.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    (reason,) = freshness.reasons(root, checkpoint, ExportOptions())
    assert reason.startswith("damaged: ")
    assert "rope.onnx has SHA-256" in reason


def _export(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, arguments)])


def test_the_command_exports_once(small_checkpoint: Path, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    first = json.loads(_export(small_checkpoint, root, "--json", "-q").stdout)
    assert (first["exported"], first["reasons"]) == (True, [freshness.NEVER])
    assert (first["variant"], first["graphs"], first["verified"]) == ("fp32", 2, 2)
    assert first["max_error"] < 1e-5
    assert set(first["seconds"]) == {"check", "export", "total"}
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}
    again = _export(small_checkpoint, root)
    assert again.exit_code == 0
    assert again.stdout == f"{root}\n"
    assert f"fp32 of {root} is current; --force exports it again." in again.stderr
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.*")} == files
    assert not json.loads(_export(small_checkpoint, root, "--json").stdout)["exported"]
    forced = json.loads(_export(small_checkpoint, root, "--json", "--force").stdout)
    assert (forced["exported"], forced["reasons"]) == (True, ["--force"])


def test_a_bundle_of_another_checkpoint_is_replaced_if_that_is_asked_for(
    small_checkpoint: Path, root: Path, tmp_path: Path
) -> None:
    export_bundle(open_checkpoint(small_checkpoint), root, ExportOptions("bfloat16"))
    copy = shutil.copytree(small_checkpoint, tmp_path / "other")
    weights = copy / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    before = (root / "manifest.json").read_bytes()
    refused = _export(copy, root)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert (root / "manifest.json").read_bytes() == before
    assert _export(copy, root, "--overwrite").exit_code == 0
    bundle = Bundle.open(root)
    assert set(bundle.manifest.variants) == {"fp32"}
    assert bundle.manifest.variants["fp32"].source == open_checkpoint(copy).source
    listed = {root / file.path for file in bundle.manifest.files}
    found = {path for path in root.rglob("*.*") if path.is_file()}
    assert found - {root / "manifest.json", root / ".lock"} == listed
