"""Bundles as files: what is in them, and that nothing half-written is ever taken for one.

Only the graphs that take a second to trace are exported here; ``small_bundle`` has them all.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from sana_rt.bundle import Bundle
from sana_rt.errors import (
    CheckpointFormatError,
    DiskFullError,
    LockedError,
    UsageError,
    VerificationError,
)
from sana_rt.export import onnx_export, verify
from sana_rt.export.checkpoint import Checkpoint, open_checkpoint
from sana_rt.export.graphs import GraphDefinition, transformer_graphs
from sana_rt.export.onnx_export import ExportOptions, export_bundle
from sana_rt.export.seeded import SMALL, write_checkpoint
from sana_rt.export.trace import Topology, trace
from sana_rt.export.weights import LazyTensor, Weights
from sana_rt.files import lock
from sana_rt.manifest import MANIFEST_NAME, Variant
from sana_rt.progress import silent

CHEAP = ("rope", "timestep", "final_layer", "solver")


@pytest.fixture
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return replace(open_checkpoint(small_checkpoint), vae=None, text_encoder=None)


@pytest.fixture(scope="module")
def topologies() -> dict[str, Topology]:
    return {}


@pytest.fixture
def _cheap(monkeypatch: pytest.MonkeyPatch, topologies: dict[str, Topology]) -> None:
    """Export four graphs, and trace each once for all tests."""

    def definitions(checkpoint: Checkpoint, dtype: Any) -> list[GraphDefinition]:
        return [each for each in transformer_graphs(checkpoint.spec, dtype) if each.name in CHEAP]

    def traced(definition: GraphDefinition, dims: dict[str, int]) -> Topology:
        key = f"{definition.name} {definition.dtype}"
        if key not in topologies:
            topologies[key] = trace(definition, dims)
        return topologies[key]

    monkeypatch.setattr(onnx_export, "definitions", definitions)
    monkeypatch.setattr(verify, "definitions", definitions)
    monkeypatch.setattr(onnx_export, "trace", traced)


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def assert_sound(bundle: Path, checkpoint: Checkpoint) -> None:
    """Hashes and errors are right, and there is no file that the manifest does not list."""
    opened = Bundle.open(bundle)
    found = verify.verify_bundle(opened, checkpoint)
    assert [each.message for each in found if each.outcome == "failed"] == []
    listed = {file.path for file in opened.manifest.files} | {MANIFEST_NAME}
    assert contents(bundle).keys() == listed


@pytest.mark.usefixtures("_cheap")
def test_an_export_is_a_sound_bundle(checkpoint: Checkpoint, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    bundle = export_bundle(
        checkpoint, tmp_path / "bundle", progress=lambda *state: seen.append(state)
    )
    assert_sound(bundle.root, checkpoint)
    assert bundle == Bundle.open(bundle.root)
    manifest = bundle.manifest
    assert manifest.model == SMALL
    assert manifest.tokenizer == "tokenizer.json"
    variant = manifest.variant("fp32")
    assert variant.decoder is None  # there is no autoencoder
    assert variant.source == checkpoint.source
    assert tuple(variant.graphs) == CHEAP
    assert variant.graphs["timestep"].path == "fp32/timestep.onnx"
    assert variant.graphs["timestep"].weights == ("fp32/timestep.weights",)
    assert variant.graphs["solver"].weights == ()  # it has none
    assert [name for name, _, _ in seen] == [*CHEAP, "manifest"]
    assert seen[-1] == ("manifest", 4, 4)


def test_two_exports_have_the_same_bytes(
    checkpoint: Checkpoint, small_bundle: Path, tmp_path: Path
) -> None:
    """Traced again here, for graphs of the bundle that another run may have made."""
    for definition in transformer_graphs(checkpoint.spec, "float32"):
        if definition.name in CHEAP:
            topology = trace(definition, onnx_export.TRACE_SIZES.dims(checkpoint.spec))
            onnx_export.write_graph(topology, definition, checkpoint.transformer, tmp_path / "fp32")
    made = contents(tmp_path)
    assert len(made) == 6  # two of the four have weights
    assert made == {name: each for name, each in contents(small_bundle).items() if name in made}


@pytest.mark.usefixtures("_cheap")
def test_variants_stand_side_by_side(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_bundle(checkpoint, tmp_path)
    before = contents(tmp_path)
    bundle = export_bundle(checkpoint, tmp_path, ExportOptions("bfloat16"))
    assert tuple(bundle.manifest.variants) == ("fp32", "bf16")
    after = contents(tmp_path)
    assert {name for name in before if after[name] != before[name]} == {MANIFEST_NAME}
    assert_sound(tmp_path, checkpoint)
    graph = bundle.manifest.variant("bf16").graphs["timestep"]
    assert [tensor.dtype for tensor in graph.outputs] == ["bfloat16", "bfloat16"]
    stored = onnx.load(tmp_path / graph.path, load_external_data=False).graph.initializer
    outside = [tensor for tensor in stored if tensor.external_data]
    assert {tensor.data_type for tensor in outside} == {onnx.TensorProto.BFLOAT16}


@pytest.mark.usefixtures("_cheap")
def test_a_variant_is_replaced_when_the_new_one_is_complete(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    export_bundle(checkpoint, tmp_path, ExportOptions("bfloat16"))
    export_bundle(checkpoint, tmp_path)
    before = contents(tmp_path)

    def stop(name: str, done: int, total: int) -> None:
        assert Bundle.open(tmp_path).manifest.variants.keys() == {"bf16", "fp32"}
        if name == "solver":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, tmp_path, progress=stop)
    assert {name: contents(tmp_path)[name] for name in before} == before
    for folder in ("fp32.1", "fp32"):  # there and back
        bundle = export_bundle(checkpoint, tmp_path)
        assert bundle.manifest.variant("fp32").graphs["rope"].path == f"{folder}/rope.onnx"
        assert_sound(tmp_path, checkpoint)


def interrupt(name: str, done: int, total: int) -> None:
    if done == 2:
        raise KeyboardInterrupt


@pytest.mark.usefixtures("_cheap")
@pytest.mark.parametrize("moment", ["between graphs", "within weights"])
def test_an_interrupted_export_is_no_bundle_and_can_be_run_again(
    moment: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "bundle"
    progress = interrupt if moment == "between graphs" else silent
    with monkeypatch.context() as patch:
        if progress is silent:
            patch.setattr(Weights, "load", fails_at("proj_out.weight", KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            export_bundle(checkpoint, root, progress=progress)
    assert not (root / MANIFEST_NAME).exists()
    assert not list(root.rglob("*.partial"))
    (root / "fp32").mkdir(exist_ok=True)
    (root / "fp32/old.onnx").write_bytes(b"of an older version")
    export_bundle(checkpoint, root)
    assert_sound(root, checkpoint)


def fails_at(name: str, error: BaseException) -> Callable[[Weights, str], Any]:
    load = Weights.load

    def loads(self: Weights, wanted: str) -> Any:
        if wanted == name:
            raise error
        return load(self, wanted)

    return loads


@pytest.mark.usefixtures("_cheap")
def test_a_full_disk_leaves_no_bundle(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(Weights, "load", fails_at("proj_out.weight", full))
        with pytest.raises(DiskFullError, match=r"final_layer\.weights"):
            export_bundle(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / MANIFEST_NAME).exists()
    assert not list(tmp_path.rglob("*.partial"))
    export_bundle(checkpoint, tmp_path / "bundle")
    assert_sound(tmp_path / "bundle", checkpoint)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.usefixtures("_cheap")
def test_a_disk_that_is_really_full(checkpoint: Checkpoint, small_disk: Path) -> None:
    with pytest.raises(DiskFullError):
        export_bundle(checkpoint, small_disk / "bundle")
    assert not (small_disk / "bundle" / MANIFEST_NAME).exists()
    assert not list(small_disk.rglob("*.partial"))


_KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from sana_rt.export import onnx_export
from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.export.graphs import transformer_graphs

onnx_export.definitions = lambda checkpoint, dtype: [
    each for each in transformer_graphs(checkpoint.spec, dtype) if each.name in ("rope", "solver")
]

def progress(name, done, total):
    if done == 1:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint = replace(open_checkpoint(Path(sys.argv[1])), vae=None, text_encoder=None)
onnx_export.export_bundle(checkpoint, Path(sys.argv[2]), progress=progress)
"""


@pytest.mark.usefixtures("_cheap")
def test_an_export_that_was_killed_can_be_run_again(
    checkpoint: Checkpoint, small_checkpoint: Path, tmp_path: Path
) -> None:
    root = tmp_path / "bundle"
    command = [sys.executable, "-c", _KILLED, str(small_checkpoint), str(root)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (root / "fp32/rope.onnx").exists()
    assert not (root / MANIFEST_NAME).exists()
    export_bundle(checkpoint, root)
    assert_sound(root, checkpoint)


@pytest.mark.usefixtures("_cheap")
def test_one_writer_at_a_time(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(LockedError, match="Another process"):
        export_bundle(checkpoint, tmp_path)


def test_what_is_no_bundle_is_left_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"not a bundle: it holds thesis\.txt"):
        export_bundle(checkpoint, tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        export_bundle(checkpoint, tmp_path / "thesis.txt")
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


@pytest.mark.usefixtures("_cheap")
def test_the_bundle_of_another_checkpoint_is_left_alone(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    export_bundle(checkpoint, tmp_path / "bundle")
    before = contents(tmp_path / "bundle")
    folder = write_checkpoint(tmp_path / "other", seed=1)
    other = replace(open_checkpoint(folder), vae=None, text_encoder=None)
    with pytest.raises(UsageError, match="is a bundle of checkpoint, sha256") as caught:
        export_bundle(other, tmp_path / "bundle")
    for source in (checkpoint.source, other.source):
        assert f"{source.checkpoint}, sha256 {source.sha256}" in str(caught.value)
    assert contents(tmp_path / "bundle") == before


@pytest.mark.usefixtures("_cheap")
def test_the_same_checkpoint_in_a_renamed_folder_is_accepted(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    export_bundle(checkpoint, tmp_path)
    bundle = export_bundle(replace(checkpoint, name="renamed"), tmp_path, ExportOptions("bfloat16"))
    variants = bundle.manifest.variants.items()
    assert {name: variant.source.checkpoint for name, variant in variants} == {
        "fp32": checkpoint.name,
        "bf16": "renamed",
    }


@pytest.mark.usefixtures("_cheap")
def test_another_tokenizer_is_not_written_over_the_old_one(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """An export that is stopped behind it leaves the old bundle with its own."""
    root = tmp_path / "bundle"
    for content, path in ((b"{}", "tokenizer.json"), (b"[]", "1.tokenizer.json")) * 2:
        (tmp_path / "tokenizer.json").write_bytes(content)
        other = replace(checkpoint, tokenizer=tmp_path / "tokenizer.json")
        for variant in ("float32", "bfloat16"):
            bundle = export_bundle(other, root, ExportOptions(variant))
            assert bundle.manifest.tokenizer == path
            assert (root / path).read_bytes() == content
            assert_sound(root, other)


@pytest.mark.usefixtures("_cheap")
def test_variants_of_a_bundle_are_of_one_model(
    checkpoint: Checkpoint, small_checkpoint: Path, tmp_path: Path
) -> None:
    export_bundle(checkpoint, tmp_path)
    other = open_checkpoint(small_checkpoint, instruction="none").spec
    said = r"of another model: text\.instruction is '', in the bundle 'Describe"
    with pytest.raises(UsageError, match=said):
        export_bundle(replace(checkpoint, spec=other), tmp_path)


@pytest.mark.usefixtures("_cheap")
def test_a_variant_may_be_called_like_the_folder_of_another(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    for name in ("mine", "mine.1", "mine", "mine.1"):
        export_bundle(checkpoint, tmp_path, ExportOptions(variant=name))
        assert_sound(tmp_path, checkpoint)
    assert Bundle.open(tmp_path).manifest.variants.keys() == {"mine", "mine.1"}


@pytest.mark.parametrize("name", ["../elsewhere", "Mine", "", "a/b"])
def test_a_variant_needs_a_name(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name of a variant"):
        export_bundle(checkpoint, tmp_path / "bundle", ExportOptions(variant=name))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.usefixtures("_cheap")
def test_a_damaged_bundle_can_be_exported_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_bundle(checkpoint, tmp_path)
    (tmp_path / "fp32/timestep.weights").unlink()
    export_bundle(checkpoint, tmp_path)
    assert_sound(tmp_path, checkpoint)


@pytest.mark.usefixtures("_cheap")
def test_weights_that_are_not_finite_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    broken = {**checkpoint.transformer}
    bias = checkpoint.transformer.load("proj_out.bias") / 0
    broken["proj_out.bias"] = LazyTensor(tuple(bias.shape), lambda: bias)
    weights = Weights(broken, checkpoint.transformer.files)
    with pytest.raises(CheckpointFormatError, match=r"proj_out\.bias"):
        export_bundle(replace(checkpoint, transformer=weights), tmp_path / "bundle")
    assert not (tmp_path / "bundle" / MANIFEST_NAME).exists()


@pytest.mark.usefixtures("_cheap")
def test_a_graph_that_differs_from_its_module_is_not_published(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", 1e-12)
    with pytest.raises(VerificationError, match="'final_layer' differs from its module"):
        export_bundle(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / MANIFEST_NAME).exists()
    bundle = export_bundle(checkpoint, tmp_path / "bundle", ExportOptions(verify=False))
    assert all(each.verification is None for each in graphs(bundle.manifest.variant("fp32")))


def graphs(variant: Variant) -> list[Any]:
    return list(variant.graphs.values())
