"""``sana-rt export``, ``verify`` and ``fetch`` as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.export import fetch as fetching
from sana_rt.export import onnx_export
from sana_rt.export.checkpoint import Checkpoint
from sana_rt.export.fetch import Snapshot
from sana_rt.export.graphs import GraphDefinition, transformer_graphs

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def _two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    def definitions(checkpoint: Checkpoint, dtype: Any) -> list[GraphDefinition]:
        graphs = transformer_graphs(checkpoint.spec, dtype)
        return [each for each in graphs if each.name in ("rope", "solver")]

    monkeypatch.setattr(onnx_export, "definitions", definitions)


@pytest.mark.usefixtures("_two_graphs")
def test_export_writes_a_bundle_and_says_where(small_checkpoint: Path, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    result = run("export", small_checkpoint, root, "--variant", "mine", "--instruction", "none")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{root}\n"
    manifest = Bundle.open(root).manifest
    assert set(manifest.variant("mine").graphs) == {"rope", "solver"}
    assert manifest.model.text.instruction == ""


@pytest.mark.usefixtures("_two_graphs")
def test_export_warns_of_parts_that_are_absent(small_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(small_checkpoint, tmp_path / "checkpoint")
    shutil.rmtree(checkpoint / "vae")
    result = run("export", checkpoint, tmp_path / "bundle", "--dtype", "bf16", "--no-verify")
    assert result.exit_code == 0, result.output
    assert "Warning: The checkpoint has no autoencoder" in result.stderr
    assert set(Bundle.open(tmp_path / "bundle").manifest.variants) == {"bf16"}


def test_export_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    result = run("export", tmp_path / "folder", tmp_path / "bundle")
    assert result.exit_code == 1
    assert "has no transformer/config.json" in result.stderr
    assert not (tmp_path / "bundle").exists()
    result = run("export", tmp_path / "folder", tmp_path / "bundle", "--dtype", "fp8")
    assert result.exit_code == 2


def test_verify_shows_a_table(small_bundle: Path, small_checkpoint: Path) -> None:
    result = run("verify", small_bundle, small_checkpoint)
    assert result.exit_code == 0, result.output
    first = result.stdout.splitlines()[0]
    assert first.startswith(f"{small_checkpoint} is the checkpoint of {small_bundle}: SHA-256 ")
    assert re.search(r"^files +ok +\d+ files have their hashes", result.stdout, re.MULTILINE)
    assert re.search(r"^fp32/block_00 +ok +\d\.\de-0\d +2\.0e-05", result.stdout, re.MULTILINE)


def test_verify_compares_with_the_checkpoint(small_bundle: Path, small_checkpoint: Path) -> None:
    result = run("verify", small_bundle, small_checkpoint, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    manifest = Bundle.open(small_bundle).manifest
    assert report["checkpoint"] == {
        "path": str(small_checkpoint),
        "sha256": manifest.variant("fp32").source.sha256,
        "same": True,
    }
    files, model, tokenizer, *graphs = report["findings"]
    assert [each["what"] for each in (files, model, tokenizer)] == ["files", "model", "tokenizer"]
    assert len(graphs) == 14
    assert {each["outcome"] for each in report["findings"]} == {"ok"}
    assert {each["message"] for each in graphs} == {"compared with its module"}


def test_verify_fails_on_a_damaged_file(
    small_bundle: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    root = _with_graphs(shutil.copytree(small_bundle, tmp_path / "bundle"), "solver")
    path = root / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    result = run("verify", root, small_checkpoint, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["findings"][0]["outcome"] == "failed"
    assert "1 of 4 checks failed: files: " in result.stderr
    assert "tokenizer.json has SHA-256" in result.stderr.replace("\n", "")


def test_verify_says_first_that_the_checkpoint_is_another(
    small_bundle: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    from sana_rt.export.seeded import write_checkpoint

    other = write_checkpoint(tmp_path / "other", seed=1)
    result = run("verify", small_bundle, other)
    assert result.exit_code == 1
    assert result.stdout == ""
    text = result.stderr.replace("\n", " ")
    assert text.startswith(f"Error: {other} is not the checkpoint of {small_bundle}")
    assert Bundle.open(small_bundle).manifest.variant("fp32").source.sha256 in text
    assert "checks failed" not in text


def test_verify_says_what_it_cannot_check_without_the_autoencoder(
    small_bundle: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(small_checkpoint, tmp_path / "checkpoint")
    shutil.move(checkpoint / "vae", tmp_path / "vae")
    root = _with_graphs(shutil.copytree(small_bundle, tmp_path / "bundle"), "solver", "vae_encoder")
    result = run("verify", root, checkpoint)
    assert result.exit_code == 0, result.output
    assert "lacks a part" in result.stdout.splitlines()[0]
    assert re.search(r"^fp32/vae_encoder +not checked .*--vae", result.stdout, re.MULTILINE)
    whole = run("verify", root, checkpoint, "--vae", tmp_path / "vae")
    assert "is the checkpoint of" in whole.stdout.splitlines()[0]
    assert re.search(r"^fp32/vae_encoder +ok", whole.stdout, re.MULTILINE)


def _with_graphs(root: Path, *names: str) -> Path:
    """The bundle with these graphs only."""
    manifest = Bundle.open(root).manifest
    fp32 = manifest.variant("fp32")
    graphs = {name: fp32.graphs[name] for name in names}
    variant = msgspec.structs.replace(fp32, graphs=graphs, decoder=None)
    bundles.save(root, msgspec.structs.replace(manifest, variants={"fp32": variant}))
    return root


def test_fetch_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str, Path]] = []

    def fetch(
        repo_id: str, revision: str, folder: Path, *, announce: Callable[[Snapshot], None]
    ) -> str:
        announce(Snapshot(repo_id, COMMIT, "apache-2.0"))
        asked.append((repo_id, revision, folder))
        return COMMIT

    monkeypatch.setattr(fetching, "fetch", fetch)
    result = run("fetch", "owner/model", "--output", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert asked == [("owner/model", "main", tmp_path / "model")]
    first, second, third = result.stderr.splitlines()
    assert first == f"Downloading owner/model at {COMMIT}."
    assert second == "Licence: apache-2.0."
    assert third == f"owner/model at {COMMIT} is in {tmp_path / 'model'}."
    assert result.stdout == f"sana-rt export {tmp_path / 'model'} {tmp_path / 'model'}-bundle\n"
    assert run("fetch", "owner/model").exit_code == 0
    assert asked[1][2] == Path("out/model")
