"""The native library opens what was checked, and refuses what Python refuses, by the same names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from tests.native.library import Library, NativeError

import sana_rt
from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.errors import SanaRTError

GRAPH = "fp32/final_layer.onnx"
WEIGHTS = "final_layer.weights"
CLIP: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 1}


@pytest.fixture
def root(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


def _list_again(root: Path) -> None:
    """Let the manifest say of each file what it is now."""
    manifest = Bundle.read(root).manifest
    files = bundles.describe(root, [root / file.path for file in manifest.files])
    bundles.save(root, msgspec.structs.replace(manifest, files=files))


def _edit(root: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(root / GRAPH, load_external_data=False)
    change(model)
    (root / GRAPH).write_bytes(model.SerializeToString())
    _list_again(root)


def _place(root: Path, key: str, value: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == key:
                    entry.value = value

    _edit(root, change)


def _weights_at(place: str) -> Callable[[Path], None]:
    def fault(root: Path) -> None:
        for copy in (root / "fp32/unlisted.weights", root.parent / "secret.weights"):
            shutil.copyfile(root / "fp32" / WEIGHTS, copy)
        _place(root, "location", place.format(parent=root.parent))

    return fault


def _weights_behind_the_end(root: Path) -> None:
    _place(root, "offset", str(10**18))


def _hidden(entry: bytes) -> Callable[[Path], None]:
    """The weights are where the manifest says, and then, for who reads this entry, elsewhere."""

    def fault(root: Path) -> None:
        tensor = onnx.TensorProto(
            name="w", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value=WEIGHTS)
        content = _field(5, tensor.SerializeToString() + _field(13, entry))
        (root / GRAPH).write_bytes((root / GRAPH).read_bytes() + _field(7, content))
        _list_again(root)

    return fault


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def _other_opset(root: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version -= 1

    _edit(root, change)


def _other_signature(root: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim.add(dim_value=1)

    _edit(root, change)


def _no_graph(root: Path) -> None:
    (root / GRAPH).write_bytes(b"\x08\x08")
    _list_again(root)


def _cut_off(root: Path) -> None:
    (root / GRAPH).write_bytes((root / GRAPH).read_bytes()[:-1])


def _linked_away(root: Path) -> None:
    shutil.move(root / "fp32" / WEIGHTS, root.parent / "elsewhere")
    (root / "fp32" / WEIGHTS).symlink_to(root.parent / "elsewhere")


def _other_tokenizer(root: Path) -> None:
    path = Bundle.read(root).manifest.tokenizer
    assert path is not None
    content = bytearray((root / path).read_bytes())
    content[content.index(b" ")] = ord("\n")  # the same tokenizer, in other bytes
    (root / path).write_bytes(content)


#: A place that is not listed.
SECRET = _field(1, b"location") + _field(2, b"unlisted.weights")
FAULTS: dict[str, Callable[[Path], None]] = {
    **{
        f"weights in {place}": _weights_at(place)
        for place in (
            *("unlisted.weights", "../../secret.weights", "{parent}/secret.weights"),
            f"./{WEIGHTS}",
        )
    },
    "weights behind a key of eight bytes": _hidden(SECRET + b"\x09whatever"),
    "weights behind a key of 33 bits": _hidden(b"\x8a\x80\x80\x80\x10" + SECRET[1:]),
    "weights behind the end": _weights_behind_the_end,
    "another opset": _other_opset,
    "another signature": _other_signature,
    "no graph": _no_graph,
    "cut off": _cut_off,
    "a link out of the bundle": _linked_away,
    "another tokenizer": _other_tokenizer,
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_python_refuses_is_refused_by_the_same_name(
    name: str, library: Library, root: Path
) -> None:
    FAULTS[name](root)
    with pytest.raises(SanaRTError) as expected, sana_rt.open(root, threads=1) as player:
        list(player.generate("a red circle", **CLIP))
    with pytest.raises(NativeError) as caught:
        list(library.open(root, threads=1).start("a red circle", **CLIP))
    assert caught.value.name == type(expected.value).__name__


def test_a_graph_in_other_bytes_than_listed_is_not_opened(library: Library, root: Path) -> None:
    """The library makes a graph of the bytes that it has hashed."""
    content = (root / GRAPH).read_bytes()
    at = content.index(b"final_layer")  # in a name that means nothing
    (root / GRAPH).write_bytes(content[:at] + b"FINAL_LAYER" + content[at + 11 :])
    with pytest.raises(NativeError, match="SHA-256") as caught:
        library.open(root, threads=1).start("a red circle", **CLIP)
    assert caught.value.name == "BundleFileError"
