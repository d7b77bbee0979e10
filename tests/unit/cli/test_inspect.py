"""``sana-rt inspect`` on bundles made from the corpus of manifests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from sana_rt import bundle as bundles
from sana_rt import manifest as manifests
from sana_rt.cli import cli
from sana_rt.manifest import File, Graph, Manifest, Verification

CORPUS = Path(__file__).parents[2] / "data/manifests/valid"


GraphFile = Callable[[Graph], bytes]


def _bundle(root: Path, manifest: Manifest, graph_file: GraphFile) -> Path:
    """Write ``manifest`` as a bundle: graphs without nodes, and files of zeros."""
    graphs = {g.path: g for variant in manifest.variants.values() for g in variant.graphs.values()}
    for file in manifest.files:
        path = root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        graph = graphs.get(file.path)
        path.write_bytes(bytes(file.bytes) if graph is None else graph_file(graph))
    files = bundles.describe(root, [root / file.path for file in manifest.files])
    bundles.save(root, msgspec.structs.replace(manifest, files=files))
    return root


@pytest.fixture
def plans(tmp_path: Path, graph_file: GraphFile) -> Path:
    return _bundle(tmp_path, manifests.decode((CORPUS / "plans.json").read_bytes()), graph_file)


def _inspect(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def test_it_shows_model_graphs_signatures_and_plans(plans: Path) -> None:
    result = _inspect(plans, "--all")
    assert result.exit_code == 0
    assert "2 blocks of width 24, bidirectional" in result.stdout
    assert "none damaged" in result.stdout
    assert re.search(r"^timestep +64\.1 KiB +not verified", result.stdout, flags=re.MULTILINE)
    assert re.search(r"out +modulation +float32 +\[batch, frames, 6, 24\]", result.stdout)
    assert re.search(r"^timestep +321 B +4\.0 MiB +8\.0 MiB +rtx 1\.7\.1\.116", result.stdout, re.M)


def test_in_short_it_fits_a_screen(plans: Path) -> None:
    result = _inspect(plans)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) < 24
    assert re.search(r"^sizes +height a multiple of 16 from 16 to 16,384", result.stdout, re.M)
    assert re.search(r"^lengths +4k \+ 1 frames: 1, 5, 9, \.\.\. 4,093", result.stdout, re.M)
    assert re.search(r"^fp32 +float32 +\S+ KiB +not verified +sm120", result.stdout, re.M)
    assert "--all" in result.stderr


def test_json_is_the_manifest_and_the_checks(plans: Path) -> None:
    shown = json.loads(_inspect(plans, "--json").stdout)
    assert manifests.decode(json.dumps(shown["manifest"]).encode()) == (
        manifests.decode((plans / "manifest.json").read_bytes())
    )
    assert shown["damaged"] == []
    assert shown["hashes_checked"]
    assert shown["bytes"] == sum(path.stat().st_size for path in plans.rglob("timestep.*"))


def _verified(root: Path, graph_file: GraphFile, **errors: float) -> Path:
    """The complete bundle of the corpus, with these errors measured at a tolerance of 1e-6."""
    manifest = manifests.decode((CORPUS / "complete.json").read_bytes())
    variant = manifest.variants["fp32"]
    graphs = {
        name: msgspec.structs.replace(
            graph,
            path=f"fp32/{name}.onnx",
            verification=Verification(errors.get(name, 3.1e-7), 1e-6, "a module", ()),
        )
        for name, graph in variant.graphs.items()
    }
    variant = msgspec.structs.replace(variant, graphs=graphs)
    paths = [path for graph in graphs.values() for path in (graph.path, *graph.weights)]
    files = tuple(File(path, 0, "0" * 64) for path in dict.fromkeys(paths))
    variants = {"fp32": variant}
    return _bundle(
        root, msgspec.structs.replace(manifest, files=files, variants=variants), graph_file
    )


def test_an_error_that_was_above_its_tolerance_fails(tmp_path: Path, graph_file: GraphFile) -> None:
    root = _verified(tmp_path, graph_file, block_01=1.1e-6)
    result = _inspect(root, "--all")
    assert result.exit_code == 1
    assert re.search(r"^block_00 to block_01 .*1\.1e-06, FAILED +1e-06", result.stdout, re.M)
    text = result.stderr.replace("\n", " ")
    assert "1 graphs are not what the manifest says: fp32/block_01 has the error 1.1e-06" in text
    assert json.loads(_inspect(root, "--json").stdout)["wrong"].keys() == {"fp32/block_01"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"opset": 99}, "has opset 99"),
        ({"inputs": ()}, "has nothing as inputs[0]"),
        ({"outputs": ()}, "has nothing as outputs[0]"),
    ],
)
def test_a_graph_that_is_not_as_the_manifest_says_fails(
    change: dict[str, object], said: str, plans: Path, graph_file: GraphFile
) -> None:
    manifest = manifests.decode((plans / "manifest.json").read_bytes())
    graph = msgspec.structs.replace(manifest.variants["fp32"].graphs["timestep"], **change)
    (plans / graph.path).write_bytes(graph_file(graph))
    files = bundles.describe(plans, [plans / file.path for file in manifest.files])
    bundles.save(plans, msgspec.structs.replace(manifest, files=files))
    for options in ((), ("--skip-hashes",)):
        result = _inspect(plans, *options)
        assert result.exit_code == 1
        assert said in result.stderr.replace("\n", " ")


def test_blocks_with_one_signature_share_a_row(tmp_path: Path, graph_file: GraphFile) -> None:
    root = _verified(tmp_path, graph_file, block_01=4.2e-7)
    text = _inspect(root, "--all").stdout
    rows = re.findall(r"^(\w+(?: to \w+)?) +[\d.]+ K?i?B +(\S+)", text, flags=re.M)
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
