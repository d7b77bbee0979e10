"""A bundle is whole at every moment of a change."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sana_rt import bundle_writer
from sana_rt.bundle import Bundle
from sana_rt.bundle_writer import new_folder, publish
from sana_rt.errors import StorageError
from sana_rt.files import write_bytes
from sana_rt.manifest import FORMAT, FORMAT_VERSION, Graph, Manifest, Source, Variant
from sana_rt.model_spec import PRESETS

SOURCE = Source("seeded", "none", "0" * 64)


def variant(root: Path, *paths: str) -> Variant:
    """A variant of graphs at ``paths``, which are written."""
    for path in paths:
        write_bytes(root / path, path.encode())
    graphs = {Path(path).stem: Graph(path, (), 23, (), ()) for path in paths}
    return Variant("float32", "", SOURCE, graphs)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    model = PRESETS["sana-video-2b-480p"]
    variants = {
        "fp32": variant(tmp_path, "fp32/first.onnx", "shared/second.onnx"),
        "bf16": variant(tmp_path, "bf16/first.onnx", "shared/second.onnx"),
    }
    empty = Manifest(FORMAT, FORMAT_VERSION, "tests", model, (), {})
    return publish(tmp_path, None, empty.with_variants(variants))


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_what_nothing_refers_to_any_more_leaves(bundle: Bundle) -> None:
    new = variant(bundle.root, "fp32.1/first.onnx")
    saved = publish(bundle.root, bundle.manifest, bundle.manifest.with_variants({"fp32": new}))
    listed = {file.path for file in saved.manifest.files}
    assert listed == {"fp32.1/first.onnx", "bf16/first.onnx", "shared/second.onnx"}
    assert files(bundle.root) == listed | {"manifest.json"}
    assert not (bundle.root / "fp32").exists()
    assert list(saved.manifest.variants) == ["bf16", "fp32"]
    for file in Bundle.open(bundle.root).manifest.files:
        saved.check_hash(file)


def test_a_listed_file_that_no_variant_uses_stays(bundle: Bundle) -> None:
    write_bytes(bundle.root / "LICENSE", b"MIT")
    licence = msgspec.structs.replace(bundle.manifest.files[0], path="LICENSE", bytes=3)
    before = msgspec.structs.replace(bundle.manifest, files=(*bundle.manifest.files, licence))
    new = variant(bundle.root, "fp32.1/first.onnx")
    saved = publish(bundle.root, before, before.with_variants({"fp32": new}))
    assert saved.manifest.file("LICENSE") == licence
    assert (bundle.root / "LICENSE").is_file()


def test_a_manifest_that_cannot_be_written_changes_nothing(bundle: Bundle) -> None:
    before = files(bundle.root)
    new = Variant("float32", "", SOURCE, {"rope": Graph("fp32.1/first.onnx", (), 23, (), ())})
    with pytest.raises(StorageError):
        publish(bundle.root, bundle.manifest, bundle.manifest.with_variants({"fp32": new}))
    assert files(bundle.root) == before
    assert Bundle.open(bundle.root) == bundle


def test_a_folder_is_one_that_nothing_is_in(bundle: Bundle) -> None:
    root, manifest = bundle.root, bundle.manifest
    (root / "fp32.1").mkdir()
    write_bytes(root / "fp32.1/device/first.onnx.partial", b"half")
    write_bytes(root / "fp32.1/first.weights", b"of a run that was killed")
    write_bytes(root / "fp32.10x/first.onnx", b"of another variant")
    write_bytes(root / "fp32.2/notes.txt", b"somebody's")
    with new_folder(root, "fp32", manifest) as folder:
        assert folder == root / "fp32.1"
        assert not folder.exists()
        write_bytes(folder / "first.onnx", b"new")
    assert (root / "fp32.1/first.onnx").is_file()
    assert (root / "fp32/first.onnx").is_file()
    assert (root / "fp32.2/notes.txt").is_file()
    assert (root / "fp32.10x/first.onnx").is_file()
    with new_folder(root, "fp32", manifest) as again:  # the one before was never listed
        assert again == root / "fp32.1"


@pytest.mark.parametrize("replaced", [False, True], ids=["before", "after"])
def test_new_files_go_again_unless_the_manifest_lists_them(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """A disk may fail before the manifest is replaced, or when that is brought to the disk."""
    before, new = files(bundle.root), variant(bundle.root, "nvfp4/first.onnx", "nvfp4/second.onnx")
    save = bundle_writer.save

    def failing(root: Path, manifest: Manifest) -> Bundle:
        if replaced:
            save(root, manifest)
        raise StorageError("No.")

    monkeypatch.setattr(bundle_writer, "save", failing)
    with pytest.raises(StorageError):
        publish(bundle.root, bundle.manifest, bundle.manifest.with_variants({"nvfp4": new}))
    after = before | ({"nvfp4/first.onnx", "nvfp4/second.onnx"} if replaced else set())
    assert files(bundle.root) == after
    assert ("nvfp4" in Bundle.open(bundle.root).manifest.variants) == replaced


def test_what_is_published_survives_what_fails_later(bundle: Bundle) -> None:
    def stopped() -> None:
        with new_folder(bundle.root, "fp32", bundle.manifest) as folder:
            new = variant(bundle.root, f"{folder.name}/first.onnx")
            publish(bundle.root, bundle.manifest, bundle.manifest.with_variants({"fp32": new}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    published = Bundle.open(bundle.root).manifest.variant("fp32")
    assert published.graphs["first"].path == "fp32.1/first.onnx"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_takes_its_folder_with_it(bundle: Bundle, error: type[BaseException]) -> None:
    def stopped() -> None:
        with new_folder(bundle.root, "fp32", bundle.manifest) as folder:
            write_bytes(folder / "device/first.onnx", b"half of it")
            raise error

    before = files(bundle.root)
    with pytest.raises(error):
        stopped()
    assert files(bundle.root) == before
