"""What is read of ONNX files is what ONNX reads of them, and damage is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, SparseTensorProto, TensorProto, helper

from sana_rt import onnx_file
from sana_rt.bundle import Bundle
from sana_rt.onnx_file import DamagedOnnxError, Outside
from sana_rt.tensors import TensorSpec


def outside(name: str, location: str, **keys: object) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **keys}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def subgraph(location: str) -> onnx.GraphProto:
    return helper.make_graph([], "sub", [], [], [outside("w", location)])


def everywhere() -> ModelProto:
    """A model with a tensor outside of it in every place that can have one."""
    attributes = [
        AttributeProto(name="a", type=AttributeProto.TENSOR, t=outside("a", "attribute")),
        AttributeProto(name="b", type=AttributeProto.TENSORS, tensors=[outside("b", "list")]),
        AttributeProto(name="c", type=AttributeProto.GRAPH, g=subgraph("branch")),
        AttributeProto(name="d", type=AttributeProto.GRAPHS, graphs=[subgraph("branches")]),
        AttributeProto(
            name="e",
            type=AttributeProto.SPARSE_TENSOR,
            sparse_tensor=SparseTensorProto(
                values=outside("e", "values"), indices=outside("i", "indices"), dims=[2]
            ),
        ),
        AttributeProto(
            name="f",
            type=AttributeProto.SPARSE_TENSORS,
            sparse_tensors=[SparseTensorProto(values=outside("f", "sparse list"))],
        ),
    ]
    node = helper.make_node("Anything", ["x"], ["y"])
    node.attribute.extend(attributes)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, shape)
        for name, shape in (("x", ["batch", 3]), ("y", []))
    )
    weights = [outside("w", "weights", offset=4096, length=8), outside("v", "weights")]
    graph = helper.make_graph([node], "main", [x], [y], weights)
    graph.sparse_initializer.add(values=outside("s", "sparse"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    model.opset_import.append(helper.make_opsetid("trt", 7))
    function = model.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["c"]))
    function.node[0].attribute.append(
        AttributeProto(name="value", type=AttributeProto.TENSOR, t=outside("c", "function"))
    )
    function.attribute_proto.append(
        AttributeProto(name="p", type=AttributeProto.TENSOR, t=outside("p", "default"))
    )
    model.training_info.add(initialization=subgraph("start"), algorithm=subgraph("step"))
    return model


def locations(message: Message) -> Iterator[str]:
    """What ONNX itself finds, by looking at every field there is."""
    if isinstance(message, TensorProto):
        yield from (entry.value for entry in message.external_data if entry.key == "location")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                yield from locations(each)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, fewer than 128."""
    return bytes([number << 3 | 2, len(content)]) + content


def tensor_of(*entries: bytes) -> bytes:
    """A model whose only tensor has these entries of places."""
    tensor = b"".join(field(13, entry) for entry in entries)
    first: bytes = helper.make_model(subgraph("first")).SerializeToString()
    return first + field(7, field(5, tensor))


ENTRY = field(1, b"location") + field(2, b"secret")


def read(content: bytes) -> onnx_file.OnnxFile:
    return onnx_file.parse(memoryview(content))


def test_tensors_outside_are_found_wherever_they_are() -> None:
    model = everywhere()
    found = read(model.SerializeToString())
    assert len(found.outside) == 14
    assert {each.location for each in found.outside} == set(locations(model))
    assert Outside("weights", 4096, 8) in found.outside
    assert Outside("weights", 0, 0) in found.outside


def test_the_signature_and_the_opset_are_read() -> None:
    found = read(everywhere().SerializeToString())
    assert found.opset == 23
    assert found.inputs == (TensorSpec("x", "bfloat16", ("batch", 3)),)
    assert found.outputs == (TensorSpec("y", "bfloat16", ()),)


def test_files_of_a_bundle_are_read_as_onnx_reads_them(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    for graph in bundle.manifest.variant("fp32").graphs.values():
        path = bundle.path(graph.path)
        model = onnx.load(path, load_external_data=False)
        found = onnx_file.read(path)
        assert [each.name for each in found.inputs] == [each.name for each in model.graph.input]
        assert sorted(each.location for each in found.outside) == sorted(locations(model))
        bundle.check_onnx(graph)


def test_the_last_of_two_values_counts() -> None:
    tensor = outside("w", "first")
    tensor.external_data.add(key="location", value="last")
    graph = helper.make_graph([], "main", [], [], [tensor])
    assert read(helper.make_model(graph).SerializeToString()).outside == (Outside("last", 0, 0),)


def test_a_tensor_that_says_no_place_is_nowhere() -> None:
    tensor = outside("w", "x")
    del tensor.external_data[:]
    tensor.external_data.add(key="offset", value="0")
    graph = helper.make_graph([], "main", [], [], [tensor])
    assert read(helper.make_model(graph).SerializeToString()).outside == (Outside("", 0, 0),)


@pytest.mark.parametrize("other", [b"\x11wxyz.bin", b"\x15.bin", b"\x09offset..", b"\x10\x05"])
def test_a_field_of_another_kind_is_passed_over_as_onnx_does(other: bytes) -> None:
    content = tensor_of(ENTRY + other)
    assert {each.location for each in read(content).outside} == {"first", "secret"}
    assert set(locations(onnx.load_model_from_string(content))) == {"first", "secret"}


@pytest.mark.parametrize(
    "key", [b"\x8a\x80\x80\x80\x10", b"\x8a\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"\x02"]
)
def test_a_key_that_readers_differ_about_is_refused(key: bytes) -> None:
    hidden = key + ENTRY[1:]
    with pytest.raises(DamagedOnnxError, match="no protocol buffer"):
        read(tensor_of(field(1, b"location") + field(2, b"weights"), hidden))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x08", "cut off"),
        (b"\x3a\x7f\x00", "cut off"),
        (b"\x0b", "no protocol buffer"),
        (b"\xff" * 20, "cut off"),
        (b"\x08\x08", "no graph"),
        (b"\x3a\x04\x5a\x02\x0a\xff", "cut off"),
    ],
)
def test_damage_is_said(content: bytes, said: str) -> None:
    with pytest.raises(DamagedOnnxError, match=said):
        read(content)


@pytest.mark.parametrize("value", ["-1", "x", "", "1e3", "9" * 40])
def test_an_impossible_offset_is_said(value: str) -> None:
    graph = helper.make_graph([], "main", [], [], [outside("w", "weights", offset=value)])
    with pytest.raises(DamagedOnnxError, match="offset"):
        read(helper.make_model(graph).SerializeToString())


def test_an_empty_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(DamagedOnnxError, match="empty"):
        onnx_file.read(tmp_path / "empty.onnx")


WHOLE = everywhere().SerializeToString()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 8), st.binary(max_size=8))
def test_no_place_escapes_that_onnx_would_read(at: int, removed: int, inserted: bytes) -> None:
    """Of damaged files, too: what ONNX can parse has no place that is not found here."""
    content = WHOLE[:at] + inserted + WHOLE[at + removed :]
    try:
        wanted = set(locations(onnx.load_model_from_string(content)))
    except (DecodeError, UnicodeDecodeError):
        wanted = set()
    try:
        found = {each.location for each in read(content).outside}
    except DamagedOnnxError:
        return  # refused
    assert wanted <= found | {""}
