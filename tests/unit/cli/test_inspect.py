"""``sana-rt inspect`` on bundles made from the corpus of manifests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from sana_rt import bundle as bundles
from sana_rt import manifest as manifests
from sana_rt.cli import cli
from sana_rt.manifest import Manifest, Verification

CORPUS = Path(__file__).parents[2] / "data/manifests/valid"


def _bundle(root: Path, manifest: Manifest) -> Path:
    """Write ``manifest`` as a bundle whose files are zeros of the listed sizes."""
    for file in manifest.files:
        path = root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(file.bytes))
    files = bundles.describe(root, [root / file.path for file in manifest.files])
    bundles.save(root, msgspec.structs.replace(manifest, files=files))
    return root


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    return _bundle(tmp_path, manifests.decode((CORPUS / "plans.json").read_bytes()))


def _inspect(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def test_it_shows_model_graphs_signatures_and_plans(plans: Path) -> None:
    result = _inspect(plans)
    assert result.exit_code == 0
    assert "2 blocks of width 24, bidirectional" in result.stdout
    assert "none damaged" in result.stdout
    assert re.search(r"^timestep +64\.3 KiB +not verified", result.stdout, flags=re.MULTILINE)
    assert re.search(r"out +modulation +float32 +\[batch, frames, 6, 24\]", result.stdout)
    assert re.search(r"^timestep +321 B +4\.0 MiB +8\.0 MiB +rtx 1\.7\.1\.116", result.stdout, re.M)


def test_json_is_the_manifest_and_the_checks(plans: Path) -> None:
    shown = json.loads(_inspect(plans, "--json").stdout)
    assert manifests.decode(json.dumps(shown["manifest"]).encode()) == (
        manifests.decode((plans / "manifest.json").read_bytes())
    )
    assert shown["damaged"] == []
    assert shown["hashes_checked"]
    assert shown["bytes"] == sum(path.stat().st_size for path in plans.rglob("timestep.*"))


def _verified(root: Path, **errors: float) -> Path:
    """The complete bundle of the corpus, with these errors measured at a tolerance of 1e-6."""
    manifest = manifests.decode((CORPUS / "complete.json").read_bytes())
    variant = manifest.variants["fp32"]
    graphs = {
        name: msgspec.structs.replace(
            graph, verification=Verification(errors.get(name, 3.1e-7), 1e-6, "a module", ())
        )
        for name, graph in variant.graphs.items()
    }
    variant = msgspec.structs.replace(variant, graphs=graphs)
    return _bundle(root, msgspec.structs.replace(manifest, variants={"fp32": variant}))


def test_blocks_with_one_signature_share_a_row(tmp_path: Path) -> None:
    root = _verified(tmp_path, block_01=4.2e-7)
    rows = re.findall(r"^(\w+(?: to \w+)?) +[\d.]+ KiB +(\S+)", _inspect(root).stdout, flags=re.M)
    assert rows[4:7] == [
        ("patch_embed", "3.1e-07"),
        ("block_00 to block_01", "4.2e-07"),
        ("final_layer", "3.1e-07"),
    ]


def test_a_damaged_file_is_named_and_fails(plans: Path) -> None:
    weights = plans / "fp32/timestep.bin"
    weights.write_bytes(b"\1" + weights.read_bytes()[1:])
    result = _inspect(plans)
    assert result.exit_code == 1
    assert "1 damaged" in result.stdout
    assert "1 of 4 files are damaged: fp32/timestep.bin" in result.stderr
    as_json = _inspect(plans, "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["damaged"] == ["fp32/timestep.bin"]
    skipped = _inspect(plans, "--skip-hashes")
    assert skipped.exit_code == 0
    assert "hashes not checked" in skipped.stdout


def test_a_bundle_that_does_not_open_is_a_typed_error(plans: Path) -> None:
    (plans / "fp32/timestep.bin").unlink()
    result = _inspect(plans)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "timestep.bin is missing" in result.stderr


def test_the_schema_needs_no_bundle() -> None:
    result = _inspect("--schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == manifests.schema()


def test_no_bundle_is_a_usage_error() -> None:
    assert _inspect().exit_code == 2
