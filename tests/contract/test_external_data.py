"""A graph cannot read files that the manifest does not list for it, whatever opens the bundle."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from sana_rt import bundle as bundles
from sana_rt import graph_names
from sana_rt.bundle import Bundle
from sana_rt.cli import cli

VALUES = np.arange(256, dtype=np.float32)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A folder with `values.bin`; a secret lies beside the folder."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "values.bin").write_bytes(VALUES.tobytes())
    (tmp_path / "secret.bin").write_bytes(VALUES.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    return folder / "graph.onnx"


def _write(path: Path, location: str) -> None:
    """Write y = x + w, with w in the file at ``location``."""
    weight = TensorProto(
        name="w",
        data_type=TensorProto.FLOAT,
        dims=VALUES.shape,
        data_location=TensorProto.EXTERNAL,
    )
    weight.external_data.add(key="location", value=location)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, VALUES.shape) for name in ("x", "y")
    )
    add = helper.make_node("Add", ["x", "w"], ["y"])
    model = helper.make_model(
        helper.make_graph([add], "add", [x], [y], [weight]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path.write_bytes(model.SerializeToString())


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_onnxruntime_reads_weights_beside_the_graph(graph: Path) -> None:
    _write(graph, "values.bin")
    (out,) = _session(graph).run(None, {"x": VALUES})
    assert np.array_equal(out, 2 * VALUES)


@pytest.mark.parametrize("location", ["../secret.bin", "{parent}/secret.bin", "link.bin"])
def test_onnxruntime_refuses_weights_elsewhere(graph: Path, location: str) -> None:
    _write(graph, location.format(parent=graph.parents[1]))
    onnx.load(graph, load_external_data=False)  # nothing else is wrong with it
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="xternal data"):
        _session(graph)


NAME = "final_layer"
OWN = f"{NAME}.weights"
SMALL = ("--height", "32", "--width", "48", "--num-frames", "5")


@pytest.fixture
def root(command: str, small_bundle: Path, tmp_path: Path) -> Path:
    """The small bundle; for `verify`, which compares graph by graph, with few of them."""
    root = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    if command == "verify":
        manifest = Bundle.read(root).manifest
        fp32 = manifest.variant("fp32")
        graphs = {name: fp32.graphs[name] for name in (*graph_names.blocks(4), NAME)}
        variant = msgspec.structs.replace(fp32, graphs=graphs, decoder=None)
        bundles.save(root, msgspec.structs.replace(manifest, variants={"fp32": variant}))
    return root


def _move_weights(root: Path, place: str) -> None:
    """Let a graph keep its weights at ``place``, with the right hash in the manifest."""
    path = root / "fp32" / f"{NAME}.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(model.SerializeToString())
    manifest = Bundle.read(root).manifest
    files = bundles.describe(root, [root / file.path for file in manifest.files])
    bundles.save(root, msgspec.structs.replace(manifest, files=files))


def _run(command: str, root: Path, checkpoint: Path) -> Result:
    folder = root.parent
    prompts = folder / "prompts.txt"
    prompts.write_text("a red circle\n")
    arguments: dict[str, tuple[object, ...]] = {
        "inspect": (root,),
        "generate": (root, "a red circle", "-o", folder / "clip.mp4", *SMALL),
        "verify": (root, checkpoint),
        "quantize": (root, "--recipe", "mixed"),
        "quantize --prompts": (root, "--recipe", "mixed", "--prompts", prompts),
        "sensitivity": (root, "--prompts", prompts, "-o", folder / "found.json"),
        "build": (root,),
    }
    name = command.split(maxsplit=1)[0]
    return CliRunner().invoke(cli, [name, *map(str, arguments[command])])


HAS_TENSORRT = importlib.util.find_spec("tensorrt_rtx") is not None
COMMANDS = (
    *("inspect", "generate", "verify", "quantize", "quantize --prompts", "sensitivity"),
    *(("build",) if HAS_TENSORRT else ()),
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "place", ["unlisted.weights", "../../secret.weights", "{parent}/secret.weights", f"./{OWN}"]
)
def test_no_command_opens_weights_that_the_manifest_does_not_list(
    command: str, place: str, root: Path, small_checkpoint: Path
) -> None:
    place = place.format(parent=root.parent)
    for copy in (root / "fp32/unlisted.weights", root.parent / "secret.weights"):
        shutil.copyfile(root / "fp32" / OWN, copy)
    _move_weights(root, place)
    result = _run(command, root, small_checkpoint)
    assert result.exit_code == 1, result.output
    assert f"{NAME}.onnx keeps weights in {place!r}" in result.stderr.replace("\n", "")
    assert not (root.parent / "clip.mp4").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_follows_a_link_out_of_the_bundle(
    command: str, root: Path, small_checkpoint: Path
) -> None:
    shutil.move(root / "fp32" / OWN, root.parent / "secret.weights")
    (root / "fp32" / OWN).symlink_to(root.parent / "secret.weights")
    result = _run(command, root, small_checkpoint)
    assert result.exit_code == 1, result.output
    assert "is a link to" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_an_empty_file_for_a_graph(
    command: str, root: Path, small_checkpoint: Path
) -> None:
    """Its size and hash are those listed; it would be a graph without layers."""
    (root / "fp32" / f"{NAME}.onnx").write_bytes(b"")
    manifest = Bundle.read(root).manifest
    files = bundles.describe(root, [root / file.path for file in manifest.files])
    bundles.save(root, msgspec.structs.replace(manifest, files=files))
    result = _run(command, root, small_checkpoint)
    assert result.exit_code == 1, result.output
    assert "not an ONNX graph: it is empty" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("command", [each for each in COMMANDS if each != "generate"])
def test_what_makes_something_of_weights_checks_their_hash(
    command: str, root: Path, small_checkpoint: Path
) -> None:
    """Playing does not: `inspect` says whether the files of a bundle are those listed."""
    path = root / "fp32/block_01.weights"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = _run(command, root, small_checkpoint)
    assert result.exit_code == 1, result.output
    assert "block_01.weights" in result.stderr.replace("\n", "")
