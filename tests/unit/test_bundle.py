"""Bundles on disk: opening, checking, and links."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from onnx import ModelProto, TensorProto

from sana_rt import bundle as bundles
from sana_rt import manifest as manifests
from sana_rt.bundle import Bundle
from sana_rt.errors import (
    BundleFileError,
    ManifestLimitError,
    ManifestMissingError,
    ManifestPathError,
    ManifestReferenceError,
    StorageError,
)
from sana_rt.manifest import Graph

PLANS = Path(__file__).parents[1] / "data/manifests/valid/plans.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle whose files hold their own paths."""
    folder = tmp_path / "bundle"
    manifest = manifests.decode(PLANS.read_bytes())
    for file in manifest.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.path)
    files = bundles.describe(folder, [folder / file.path for file in manifest.files])
    bundles.save(folder, msgspec.structs.replace(manifest, files=files))
    return folder


def test_a_saved_bundle_opens_and_its_hashes_match(root: Path) -> None:
    bundle = Bundle.open(root)
    assert [file.path for file in bundle.manifest.files] == sorted(
        path.relative_to(root).as_posix() for path in root.rglob("timestep.*")
    )
    for file in bundle.manifest.files:
        bundle.check_hash(file)


def test_paths_of_graphs_and_plans(root: Path) -> None:
    bundle = Bundle.open(root)
    variant = bundle.manifest.variant("fp32")
    assert bundle.graph_paths(variant.graphs["timestep"]) == (
        root / "fp32/timestep.onnx",
        root / "fp32/timestep.bin",
    )
    plan = variant.plans["sm120"]["timestep"]
    assert bundle.graph_paths(plan) == (root / plan.path,)
    with pytest.raises(ManifestReferenceError):
        bundle.path("manifest.json")


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestMissingError, match=r"manifest\.json"):
        Bundle.open(tmp_path / name)


def test_a_folder_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        Bundle.open(root)


def test_a_huge_manifest_is_not_read_to_its_end(root: Path) -> None:
    with (root / "manifest.json").open("r+b") as file:
        file.truncate(1 << 38)  # sparse: reading all of it would not fit in memory
    with pytest.raises(ManifestLimitError):
        Bundle.open(root)


def test_an_absent_file(root: Path) -> None:
    (root / "fp32/timestep.bin").unlink()
    with pytest.raises(BundleFileError, match=r"timestep\.bin is missing"):
        Bundle.open(root)


def test_a_folder_in_the_place_of_a_file(root: Path) -> None:
    (root / "fp32/timestep.bin").unlink()
    (root / "fp32/timestep.bin").mkdir()
    with pytest.raises(BundleFileError, match=r"timestep\.bin is missing"):
        Bundle.open(root)


def test_a_truncated_file(root: Path) -> None:
    (root / "fp32/timestep.bin").write_text("fp32")
    with pytest.raises(BundleFileError, match="has 4 bytes") as caught:
        Bundle.open(root)
    assert caught.value.expected == "17 bytes."


def test_a_changed_file_opens_but_its_hash_differs(root: Path) -> None:
    (root / "fp32/timestep.bin").write_text("fp32/timestep.bim")
    bundle = Bundle.open(root)
    with pytest.raises(BundleFileError, match="SHA-256"):
        bundle.check_hash(bundle.manifest.file("fp32/timestep.bin"))


def test_a_link_out_of_the_bundle(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "fp32/timestep.bin", tmp_path / "outside")
    (root / "fp32/timestep.bin").symlink_to(tmp_path / "outside")
    with pytest.raises(ManifestPathError, match="outside"):
        Bundle.open(root)


def test_a_linked_folder_out_of_the_bundle(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "fp32", tmp_path / "elsewhere")
    (root / "fp32").symlink_to("../elsewhere")
    with pytest.raises(ManifestPathError, match="elsewhere"):
        Bundle.open(root)


def test_a_link_to_a_sibling_whose_name_begins_alike(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "bundle-2")
    (root / "fp32/timestep.bin").unlink()
    (root / "fp32/timestep.bin").symlink_to(tmp_path / "bundle-2/fp32/timestep.bin")
    with pytest.raises(ManifestPathError):
        Bundle.open(root)


def test_links_that_stay_inside_are_followed(root: Path, tmp_path: Path) -> None:
    (root / "fp32/timestep.bin").rename(root / "blob")
    (root / "fp32/timestep.bin").symlink_to("../blob")
    (tmp_path / "alias").symlink_to(root)
    bundle = Bundle.open(tmp_path / "alias")
    bundle.check_hash(bundle.manifest.file("fp32/timestep.bin"))


def test_a_link_in_a_circle(root: Path) -> None:
    (root / "fp32/timestep.bin").unlink()
    (root / "fp32/timestep.bin").symlink_to("timestep.bin")
    with pytest.raises(BundleFileError, match="missing"):
        Bundle.open(root)


@pytest.fixture
def graph_at(
    root: Path, graph_file: Callable[[Graph], bytes]
) -> Callable[[TensorProto], tuple[Bundle, Graph]]:
    """Write the bundle's graph with a weight that lies where it says; the listed file has 16 B."""

    def write(weight: TensorProto) -> tuple[Bundle, Graph]:
        bundle = Bundle.open(root)
        graph = bundle.manifest.variant("fp32").graphs["timestep"]
        model = ModelProto.FromString(graph_file(graph))
        model.graph.initializer.append(weight)
        (root / graph.path).write_bytes(model.SerializeToString())
        (root / graph.weights[0]).write_bytes(bytes(16))
        files = bundles.describe(root, [root / file.path for file in bundle.manifest.files])
        manifest = msgspec.structs.replace(bundle.manifest, files=files)
        return bundles.save(root, manifest), graph

    return write


def _weight(location: str, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_weights_in_a_listed_file_are_accepted(
    graph_at: Callable[[TensorProto], tuple[Bundle, Graph]],
) -> None:
    bundle, graph = graph_at(_weight("timestep.bin", 8, 8))
    bundle.check_graph(graph)


@pytest.mark.parametrize(
    ("location", "offset", "length", "said"),
    [
        ("timestep.bin", 8, 9, "up to byte 17"),
        ("timestep.bin", 10**18, 0, "up to byte 1,000,000,000,000,000,000"),
        ("timestep.onnx", 0, 1, "keeps weights in 'timestep.onnx'"),
        ("sm120/timestep.plan", 0, 1, "keeps weights in 'sm120/timestep.plan'"),
        ("../fp32/timestep.bin", 0, 1, "keeps weights in"),
        ("./timestep.bin", 0, 1, "keeps weights in"),
        ("", 0, 1, "keeps weights in ''"),
    ],
)
def test_weights_elsewhere_are_refused(
    graph_at: Callable[[TensorProto], tuple[Bundle, Graph]],
    location: str,
    offset: int,
    length: int,
    said: str,
) -> None:
    """Other files of the bundle, too: only those that are listed for this graph are its."""
    bundle, graph = graph_at(_weight(location, offset, length))
    with pytest.raises(BundleFileError, match=said):
        bundle.check_onnx(graph)


def test_a_manifest_is_not_saved_before_its_files(root: Path) -> None:
    manifest = Bundle.open(root).manifest
    (root / "manifest.json").unlink()
    (root / "fp32/timestep.onnx").unlink()
    with pytest.raises(BundleFileError):
        bundles.save(root, manifest)
    assert not (root / "manifest.json").exists()
