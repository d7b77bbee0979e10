"""The parser of compiled layer tables, on real logs and on lines in their form."""

from __future__ import annotations

import lzma
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sana_rt.engines import plan_table
from sana_rt.engines.plan_table import DTYPES, Kernel, PlanTable, Tensor
from sana_rt.errors import PlanTableError

from .conftest import DATA

LOGS = sorted(path.name.removesuffix(".log.xz") for path in DATA.glob("*.log.xz"))
LINE = (
    "Name: up_myl0_3, LayerType: gemm, Inputs: [ { Name: x_codes.1_myl0, Dimensions: [1024,256], "
    "Strides: [256,1], StrideOrder: [1,0], Datatype: FP4E2M1, Format: (Linear) Row major linear "
    "format }, { Name: __mye599_myl0, Dimensions: [8,4,32,4,4], Strides: [2048,512,16,4,1], "
    "StrideOrder: [4,3,2,1,0], Datatype: FP8, Format: (Arbitrary) Format with stride order = "
    "[4,1,2,3,0] }], Constants: [ { Name: __mye861_dconst_myl0, Dimensions: [256,768], Strides: "
    "[1,256], StrideOrder: [0,1], Datatype: FP4E2M1, Format: (Transposed) Transposed format }], "
    "Outputs: [ { Name: y, Dimensions: [1024,768], Strides: [768,1], StrideOrder: [1,0], "
    "Datatype: BFloat16, Format: (Linear) Row major linear format }], TacticName: "
    "__myelin_CASK_STUB, StreamId: 1, Metadata: [ONNX Layer: up]\x1f[ONNX Layer: up.w_t]"
)
UP = Kernel(
    name="up_myl0_3",
    kind="gemm",
    inputs=(
        Tensor("x_codes.1_myl0", "float4_e2m1", (1024, 256)),
        Tensor("__mye599_myl0", "float8_e4m3fn", (8, 4, 32, 4, 4)),
    ),
    constants=(Tensor("__mye861_dconst_myl0", "float4_e2m1", (256, 768)),),
    outputs=(Tensor("y", "bfloat16", (1024, 768)),),
    tactic="__myelin_CASK_STUB",
    stream=1,
    nodes=("up", "up.w_t"),
)


def _log(name: str) -> str:
    return lzma.decompress((DATA / f"{name}.log.xz").read_bytes()).decode()


def _table(log: str) -> str:
    """The lines of the table, found in another way than the parser's."""
    return log.split("[VERBOSE] Layers:\n")[1].split("\n\n", maxsplit=1)[0]


@pytest.mark.parametrize("name", LOGS)
def test_nothing_of_a_real_table_is_dropped(name: str) -> None:
    log = _log(name)
    lines = _table(log).splitlines()
    kernels = plan_table.parse(log).kernels
    assert len(kernels) == len(lines) > 5
    for kernel, line in zip(kernels, lines, strict=True):
        tensors = kernel.inputs + kernel.constants + kernel.outputs
        assert len(tensors) == line.count("Datatype: ")
        assert [f"[{','.join(map(str, tensor.shape))}]" for tensor in tensors] == re.findall(
            r"Dimensions: (\[[-\d,]*\])", line
        )
        assert len(kernel.nodes) == line.count("ONNX Layer: ")
        assert f"StreamId: {kernel.stream}," in line


def test_sees_what_is_fp4() -> None:
    table = plan_table.parse(_log("nvfp4_chain"))
    gemms = [kernel for kernel in table.kernels if kernel.kind == "gemm"]
    assert [kernel.nodes[0] for kernel in gemms] == ["up", "down"]
    for kernel in gemms:
        assert kernel.inputs[0].dtype == kernel.constants[0].dtype == "float4_e2m1"
    assert (table.activation_bytes, table.weight_bytes) == (9_912_320, 222_088)


def test_sees_jumps_and_copies() -> None:
    kinds = [kernel.kind for kernel in plan_table.parse(_log("branch")).kernels]
    assert {"jmp", "cjmp", "copy", "memset", "gemm", "kgen"} <= set(kinds)


def test_a_line() -> None:
    assert plan_table.parse_line(LINE) == UP
    assert UP.inputs[0].bytes == 1024 * 256 // 2
    assert UP.is_fixed


def test_an_unknown_kind_is_kept() -> None:
    assert plan_table.parse_line(LINE.replace("gemm", "tensor_gym")).kind == "tensor_gym"


def test_an_unknown_field_does_not_disturb() -> None:
    line = LINE.replace("StreamId: 1", "StreamId: 1, Priority: [1, [2]], EventId: 7")
    assert plan_table.parse_line(line) == UP


def test_dimensions_that_are_decided_at_run_time() -> None:
    kernel = plan_table.parse_line(LINE.replace("[1024,256]", "[-1,256]"))
    assert kernel.inputs[0].shape == (-1, 256)
    assert not kernel.is_fixed


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (LINE.replace("Name: up_myl0_3, ", ""), "starts with"),
        (LINE.replace("FP4E2M1", "FP3"), "data types"),
        (LINE.replace("Dimensions: [1024,768]", "Dims: [1024,768]"), "list of tensors"),
        (LINE.replace("Strides: [768,1]", "Strides: [768;1]"), "list of tensors"),
        (LINE.replace(" }], Constants", " }, Constants"), "closing bracket"),
        (LINE.replace("StreamId: 1, ", ""), "'StreamId'"),
        (LINE.replace("Outputs: [", "Results: ["), "'Outputs'"),
        (LINE.replace("[ONNX Layer: up.w_t]", "and more"), "metadata"),
        (LINE[:250], "closing bracket"),
        ("", "starts with"),
    ],
)
def test_a_line_that_is_not_understood_is_an_error(broken: str, expected: str) -> None:
    assert broken != LINE
    with pytest.raises(PlanTableError) as caught:
        plan_table.parse_line(broken)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.replace("] Layers:", "] Strata:"), "0 compiled layer tables"),
        (lambda log: log + log, "2 compiled layer tables"),
        (lambda log: log.replace("Total Activation", "Total"), "Total Activation Memory"),
        (lambda log: log.replace("Total Weights", "Total"), "Total Weights Memory"),
        (lambda log: log.replace("LayerType: gemm", "gemm"), "does not parse"),
    ],
)
def test_a_log_that_is_not_understood_is_an_error(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PlanTableError, match=message):
        plan_table.parse(change(_log("nvfp4_chain")))


words = st.text("abcXYZ019_.+^/ ()$", min_size=1, max_size=12).map(str.strip).filter(bool)
tensors = st.builds(
    Tensor,
    words,
    st.sampled_from(sorted(DTYPES.values())),
    st.lists(st.integers(-1, 9999), max_size=5).map(tuple),
)
kernels = st.builds(
    Kernel,
    name=words,
    kind=st.sampled_from(["gemm", "kgen", "a_new_kind"]),
    inputs=st.lists(tensors, max_size=3).map(tuple),
    constants=st.lists(tensors, max_size=2).map(tuple),
    outputs=st.lists(tensors, max_size=2).map(tuple),
    tactic=st.just("") | words,
    stream=st.integers(0, 9),
    nodes=st.lists(words, max_size=3).map(tuple),
)
LOG_NAMES = {ours: theirs for theirs, ours in DTYPES.items()}


def _print(kernel: Kernel) -> str:
    """The line that TensorRT would print."""

    def side(tensors: tuple[Tensor, ...]) -> str:
        return f"[{', '.join(map(one, tensors))}]"

    def one(tensor: Tensor) -> str:
        dims = ",".join(map(str, tensor.shape))
        return (
            f" {{ Name: {tensor.name}, Dimensions: [{dims}], Strides: [{dims}], StrideOrder: [], "
            f"Datatype: {LOG_NAMES[tensor.dtype]}, Format: (Arbitrary) order = [{dims}] }}"
        )

    nodes = "\x1f".join(f"[ONNX Layer: {node}]" for node in kernel.nodes)
    return (
        f"Name: {kernel.name}, LayerType: {kernel.kind}, Inputs: {side(kernel.inputs)}, "
        f"Constants: {side(kernel.constants)}, Outputs: {side(kernel.outputs)}, "
        f"TacticName: {kernel.tactic}, StreamId: {kernel.stream}, Metadata: {nodes}"
    )


@given(st.lists(kernels, max_size=3), st.integers(0, 1 << 40))
def test_what_is_printed_is_read(printed: list[Kernel], size: int) -> None:
    lines = "".join(f"{_print(kernel)}\n" for kernel in printed)
    log = (
        f"[INFO] Total Activation Memory: {size} bytes\n[INFO] Total Weights Memory: 7 bytes\n"
        f"[VERBOSE] Layers:\n{lines}\nBindings:\n[INFO] The end.\n"
    )
    assert plan_table.parse(log) == PlanTable(tuple(printed), size, 7)
