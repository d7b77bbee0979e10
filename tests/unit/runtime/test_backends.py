"""Buffers, bindings and the choice of a backend, on graphs made by hand."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sana_rt.bundle import Bundle
from sana_rt.errors import (
    BackendError,
    BindingError,
    BundleFileError,
    DeviceMemoryError,
    UsageError,
)
from sana_rt.manifest import (
    FORMAT,
    FORMAT_VERSION,
    BuiltFrom,
    File,
    Form,
    Graph,
    Manifest,
    Plan,
    Quantization,
    Source,
    Variant,
)
from sana_rt.model_spec import PRESETS
from sana_rt.runtime import backends
from sana_rt.runtime.backends import buffers, onnxruntime
from sana_rt.runtime.backends.base import (
    Artifact,
    Backend,
    BackendOptions,
    Candidate,
    Context,
    Entry,
    Offers,
)
from sana_rt.runtime.backends.buffers import Buffer
from sana_rt.runtime.backends.host import HostMemory, _group_bytes
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.memory import weight_bytes
from sana_rt.tensors import TensorSpec

HASH = "0" * 64
ONE_THREAD = BackendOptions(threads=1)
Save = Callable[[onnx.NodeProto], tuple[Graph, Path]]
X = TensorSpec("x", "float32", ("batch", 3))
Y = TensorSpec("y", "float32", ("batch", 3))


@pytest.fixture
def backend() -> Backend:
    return onnxruntime.cpu(ONE_THREAD)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a graph x [batch, 3] -> y [batch, 3] of one node, which may use the constant w = 2."""

    def write(node: onnx.NodeProto) -> tuple[Graph, Path]:
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy"
        ]
        constant = numpy_helper.from_array(np.full(3, 2, np.float32), "w")
        graph = helper.make_graph([node], "graph", values[:1], values[1:], [constant])
        opsets = [helper.make_opsetid("", 20)]
        path = tmp_path / "graph.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return Graph(path.name, (), 20, (X,), (Y,)), path

    return write


@pytest.fixture
def doubling(save: Save) -> tuple[Graph, Path]:
    return save(helper.make_node("Mul", ["x", "w"], ["y"]))


def buffer(backend: Backend, values: object, dtype: str = "float32") -> Buffer:
    array = np.array(values, buffers.HOST_DTYPES[dtype])
    allocated = backend.memory.allocate(dtype, array.shape)
    backend.memory.upload(allocated, array)
    return allocated


def test_a_graph_runs_on_bound_buffers_any_number_of_times(
    backend: Backend, doubling: tuple[Graph, Path]
) -> None:
    graph, path = doubling
    x, y = buffer(backend, [[1, 2, 3], [4, 5, 6]]), backend.memory.allocate("float32", (2, 3))
    binding = backend.open(Artifact("doubling", graph, path)).bind({"x": x}, {"y": y})
    allocations = backend.memory.allocations
    for factor in (1, 10):
        backend.memory.upload(x, np.float32([[1, 2, 3], [4, 5, 6]]) * factor)
        binding.run()
        np.testing.assert_array_equal(
            backend.memory.download(y), np.float32([[2, 4, 6], [8, 10, 12]]) * factor
        )
    assert backend.memory.allocations == allocations


def test_parts_of_buffers_are_bound_in_place(
    backend: Backend, doubling: tuple[Graph, Path]
) -> None:
    """Halves of a batch and rows of a stack, as the pipeline uses them."""
    graph, path = doubling
    stack = buffer(backend, np.arange(18).reshape(3, 2, 3))
    out = backend.memory.allocate("float32", (2, 3))
    context = backend.open(Artifact("doubling", graph, path))
    context.bind({"x": stack.row(1)}, {"y": out}).run()
    np.testing.assert_array_equal(backend.memory.download(out), [[12, 14, 16], [18, 20, 22]])
    context.bind({"x": stack.row(2)[1:2]}, {"y": out[0:1]}).run()
    np.testing.assert_array_equal(backend.memory.download(out), [[30, 32, 34], [18, 20, 22]])


def test_a_binding_keeps_its_memory_alive(backend: Backend, doubling: tuple[Graph, Path]) -> None:
    graph, path = doubling
    y = backend.memory.allocate("float32", (1000, 3))
    context = backend.open(Artifact("doubling", graph, path))
    binding = context.bind({"x": buffer(backend, np.ones((1000, 3)))}, {"y": y})
    gc.collect()
    others = [buffer(backend, np.full((1000, 3), 7)) for _ in range(50)]
    binding.run()
    assert (backend.memory.download(y) == 2).all()
    assert len(others) == 50


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ({}, {"y": (2, 3)}, "exactly \\['x'\\]"),
        ({"x": (2, 3), "z": (2, 3)}, {"y": (2, 3)}, "'z'"),
        ({"x": (2, 4)}, {"y": (2, 3)}, "\\(2, 4\\)"),
        ({"x": (2, 3, 1)}, {"y": (2, 3)}, "\\(2, 3, 1\\)"),
        ({"x": (2, 3)}, {"y": (1, 3)}, "'batch': 2"),
    ],
)
def test_bindings_that_do_not_fit_are_refused(
    backend: Backend,
    doubling: tuple[Graph, Path],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    words: str,
) -> None:
    graph, path = doubling
    context = backend.open(Artifact("doubling", graph, path))
    sides = [
        {name: backend.memory.allocate("float32", shape) for name, shape in side.items()}
        for side in (inputs, outputs)
    ]
    with pytest.raises(BindingError, match=words):
        context.bind(*sides)


def test_other_dtypes_and_shared_memory_are_refused(
    backend: Backend, doubling: tuple[Graph, Path]
) -> None:
    graph, path = doubling
    context = backend.open(Artifact("doubling", graph, path))
    x, y = (backend.memory.allocate("float32", (4, 3)) for _ in "xy")
    with pytest.raises(BindingError, match="was given int64"):
        context.bind({"x": backend.memory.allocate("int64", (4, 3))}, {"y": y})
    with pytest.raises(BindingError, match="shares memory with 'x'"):
        context.bind({"x": x}, {"y": x})
    with pytest.raises(BindingError, match="shares memory"):
        context.bind({"x": x[0:2]}, {"y": x[1:3]})
    context.bind({"x": x[0:2]}, {"y": x[2:4]}).run()


def test_copies_check_shape_and_dtype(backend: Backend) -> None:
    memory = backend.memory
    whole = buffer(backend, np.arange(6).reshape(2, 3))
    target = memory.allocate("float32", (2, 3))
    memory.copy(target[1:2], whole[0:1])
    np.testing.assert_array_equal(memory.download(target), [[0, 0, 0], [0, 1, 2]])
    memory.clear(target[1:2])
    assert not memory.download(target).any()
    with pytest.raises(BindingError):
        memory.copy(target, whole[0:1])
    with pytest.raises(BindingError):
        memory.upload(target, np.zeros((2, 3), np.int64))
    with pytest.raises(BindingError):
        memory.upload(target, np.zeros((3, 2), np.float32))
    with pytest.raises(BindingError):
        target.view((7,))
    with pytest.raises(BindingError):
        target[::2]


def test_bfloat16_travels_as_bits_and_rounds_to_even() -> None:
    """Against ml_dtypes, on ordinary values, ties, and the ends of the range."""
    memory = HostMemory()
    rng = np.random.default_rng(0)
    ties = (np.arange(8, dtype=np.uint32) * 0x8000 + 0x3F800000).view(np.float32)
    ends = np.float32([0, -0.0, np.inf, -np.inf, 3.4e38, 1e-40, -1e-45])
    values = np.concatenate([rng.standard_normal(1000).astype(np.float32) * 1e3, ties, ends])
    there = memory.allocate("bfloat16", values.shape)
    memory.upload(there, values)
    back = memory.download(there)
    np.testing.assert_array_equal(back, values.astype(ml_dtypes.bfloat16).astype(np.float32))
    nan = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(buffers.widen(buffers.to_device_dtype(nan, "bfloat16"))).all()


def test_host_memory_is_aligned_and_zero() -> None:
    for size in (1, 3, 1000):
        there = HostMemory().allocate("float32", (size,))
        assert there.address % 64 == 0
        assert not HostMemory().download(there).any()


def test_more_than_the_system_has_is_refused() -> None:
    with pytest.raises(DeviceMemoryError, match=r"refused 4,000,000,000,000,000,000 bytes"):
        HostMemory().allocate("float32", (10**18,))


def test_limits_of_a_control_group(tmp_path: Path) -> None:
    assert _group_bytes(tmp_path) is None
    (tmp_path / "memory.stat").write_text("anon 300\nfile 5000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert _group_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert _group_bytes(tmp_path) == 700
    assert HostMemory().free_bytes() > 0


def test_a_graph_that_fails_is_named(backend: Backend, save: Save, tmp_path: Path) -> None:
    graph, path = save(helper.make_node("NoSuchOperator", ["x"], ["y"]))
    with pytest.raises(BackendError, match=r"'block_07'.*NoSuchOperator"):
        backend.open(Artifact("block_07", graph, path))
    path.write_bytes(b"no protobuf")
    with pytest.raises(BackendError, match="block_07"):
        backend.open(Artifact("block_07", graph, path))
    with pytest.raises(BackendError, match="block_07"):
        backend.open(Artifact("block_07", graph, tmp_path / "none.onnx"))


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(
    backend: Backend, doubling: tuple[Graph, Path], save: Save
) -> None:
    graph, path = doubling
    other = msgspec.structs.replace(graph, inputs=(TensorSpec("z", "float32", ("batch", 3)),))
    with pytest.raises(BundleFileError, match=r"'block_07' has the inputs \['x'\]"):
        backend.open(Artifact("block_07", other, path))
    graph, path = save(helper.make_node("Concat", ["x", "x"], ["y"], axis=0))
    x, y = (backend.memory.allocate("float32", (2, 3)) for _ in "xy")
    binding = backend.open(Artifact("block_07", graph, path)).bind({"x": x}, {"y": y})
    with pytest.raises(BackendError, match=r"'block_07': .*is \{4,3\}"):
        binding.run()


def variant(dtype: str) -> Variant:
    return Variant(dtype, "", Source("", "", "0" * 64), {})


@pytest.fixture
def _cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime as it is without its CUDA provider."""
    monkeypatch.setattr(onnxruntime.ort, "get_available_providers", lambda: [onnxruntime.CPU])


@pytest.mark.usefixtures("_cpu_only")
def test_the_backend_chooses_the_variant_it_prefers() -> None:
    both = {"bf16": variant("bfloat16"), "fp32": variant("float32"), "other": variant("float32")}
    chosen, name = backends.select("auto", both, None, ONE_THREAD)
    assert (chosen.name, name) == ("onnxruntime", "fp32")
    assert backends.select("onnxruntime", both, "other", ONE_THREAD)[1] == "other"


@pytest.mark.usefixtures("_cpu_only")
def test_a_quantized_variant_is_played_only_when_asked_for() -> None:
    quantized = msgspec.structs.replace(variant("float32"), quantization=made("mixed", "emulation"))
    both = {"mixed-emulation": quantized, "fp32": variant("float32")}
    assert backends.select("auto", both, None, ONE_THREAD)[1] == "fp32"
    assert backends.select("auto", both, "mixed-emulation", ONE_THREAD)[1] == "mixed-emulation"
    with pytest.raises(BackendError, match=r"'mixed-emulation': .* only if asked for"):
        backends.select("auto", {"mixed-emulation": quantized}, None, ONE_THREAD)


@pytest.mark.usefixtures("_cpu_only")
def test_one_error_lists_every_refusal() -> None:
    with pytest.raises(BackendError) as caught:
        backends.select("auto", {"bf16": variant("bfloat16")}, None, ONE_THREAD)
    text = str(caught.value)
    assert "onnxruntime-cuda: this build of ONNX Runtime has only" in text
    assert "onnxruntime: 'bf16': it is in bfloat16, and ONNX Runtime plays float32 only" in text
    with pytest.raises(BackendError, match="pip install onnxruntime-gpu"):
        backends.select("onnxruntime-cuda", {"fp32": variant("float32")}, None)
    with pytest.raises(UsageError, match="'gpu'"):
        backends.select("gpu", {"fp32": variant("float32")}, None)


def made(recipe: str, form: Form) -> Quantization:
    return Quantization(recipe, "1" * 64, form)


def device_and_emulation() -> dict[str, Variant]:
    return {
        "fp32": variant("float32"),
        "nvfp4-max": msgspec.structs.replace(
            variant("bfloat16"), quantization=made("max", "device")
        ),
        "nvfp4-max-emulation": msgspec.structs.replace(
            variant("float32"), quantization=made("max", "emulation")
        ),
        "nvfp4-own": msgspec.structs.replace(
            variant("bfloat16"), quantization=made("own", "device")
        ),
    }


def test_a_variant_for_tensorrt_is_refused_with_its_emulation() -> None:
    """By every backend for what it is: no package of CUDA's would help."""
    with pytest.raises(BackendError) as caught:
        backends.select("auto", device_and_emulation(), "nvfp4-max", ONE_THREAD)
    lines = str(caught.value).splitlines()
    assert lines[0] == "No backend can play the variant 'nvfp4-max' here:"
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == list(backends.BACKENDS)
    assert lines[1].endswith(
        "tensorrt: it has no plans (sana-rt build BUNDLE --variant nvfp4-max makes them)."
    )
    own = [line for line in lines[2:-1] if "onnxruntime-rtx" not in line]
    assert all("operators that only TensorRT has" in line for line in own)
    assert not any("pip" in line for line in own)
    assert "play 'nvfp4-max-emulation'" in lines[-1]
    with pytest.raises(BackendError) as caught:
        backends.select("auto", device_and_emulation(), "nvfp4-own", ONE_THREAD)
    assert "emulation" not in str(caught.value), "it has none"


def test_offers_say_why_for_each_variant() -> None:
    variants = {"bf16": variant("bfloat16"), **device_and_emulation()}
    cpu = onnxruntime.CPU_CANDIDATE.offers(variants)
    assert cpu.playable == ("fp32", "nvfp4-max-emulation")
    assert set(cpu.refusals) == {"bf16", "nvfp4-max", "nvfp4-own"}
    cuda = onnxruntime.CUDA_CANDIDATE.offers(variants)
    assert cuda.playable == ("bf16", "fp32", "nvfp4-max-emulation"), "bfloat16 is preferred"
    assert set(cuda.refusals) == {"nvfp4-max", "nvfp4-own"}


def plan_of(name: str, graph: Graph) -> Plan:
    return Plan(
        path=f"{name}.engine", log=f"{name}.log", flavour="rtx", flavour_version="1",
        compute_capability="12.0", profile={}, options={},
        built_from=BuiltFrom(HASH, (), made("max", "device")),
        inputs=graph.inputs, outputs=graph.outputs, activation_bytes=len(name), weight_bytes=7,
        user_allocation=True,
    )  # fmt: skip


class PlanBackend(Backend):
    """Opens the plans of a card, and knows how large their activations are."""

    def __init__(self) -> None:
        super().__init__("plans", HostMemory())
        self.opened: list[Artifact] = []

    @staticmethod
    def offers(variants: Mapping[str, Variant]) -> Offers:
        playable = tuple(name for name, one in variants.items() if "sm120" in one.plans)
        refusals = {name: "it has no plans for sm120" for name in variants if name not in playable}
        return Offers(playable, refusals)

    def artifacts(self, variant: Variant) -> Mapping[str, Entry]:
        return variant.plans["sm120"]

    def open(self, artifact: Artifact, *, lasting: bool = True) -> Context:
        self.opened.append(artifact)
        raise BackendError(f"there is no card for {artifact.name}, lasting: {lasting}")

    def activation_bytes(self, entries: Iterable[Entry]) -> int | None:
        return max(one.activation_bytes for one in entries if isinstance(one, Plan))


def test_a_backend_may_open_plans(
    monkeypatch: pytest.MonkeyPatch, doubling: tuple[Graph, Path]
) -> None:
    """The variants that have them are offered, and their files and sizes are what counts."""
    graph, path = doubling
    names = ("block_00", "solver")
    variants = {
        "bf16": variant("bfloat16"),
        "nvfp4-max": Variant(
            "bfloat16", "", Source("", "", "0" * 64), dict.fromkeys(names, graph),
            {"sm120": {name: plan_of(name, graph) for name in names}}, made("max", "device"),
        ),
    }  # fmt: skip
    candidate = Candidate(PlanBackend.offers, lambda _: PlanBackend())
    monkeypatch.setattr(backends, "BACKENDS", {"plans": lambda: candidate})
    backend, name = backends.select("auto", variants, "nvfp4-max")
    assert name == "nvfp4-max"
    with pytest.raises(BackendError, match=r"'bf16': it has no plans for sm120; 'nvfp4-max': .*"):
        backends.select("auto", variants, None)

    files = File("solver.engine", 1, HASH), File(graph.path, 1, HASH)
    spec = PRESETS["sana-video-2b-480p"]
    manifest = Manifest(FORMAT, FORMAT_VERSION, "", spec, files, variants)
    graphs = Graphs(Bundle(path.parent, manifest), name, backend)
    with pytest.raises(BackendError, match="no card"):
        graphs.open("solver")
    (opened,) = backend.opened
    assert (opened.name, opened.path) == ("solver", path.parent / "solver.engine")
    assert (opened.sha256, opened.variant) == (HASH, "nvfp4-max")
    assert isinstance(opened.entry, Plan)
    assert graphs.activation_bytes(names) == len("block_00")
    assert weight_bytes({}, graphs.signatures) == {"block_00": 7, "solver": 7}


def test_the_cuda_provider_without_a_gpu_says_what_is_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where onnxruntime-gpu is installed: first the driver, then the provider itself refuses."""
    cuda = pytest.importorskip("sana_rt.runtime.backends.cuda")
    with contextlib.suppress(BackendError):
        cuda.CudaMemory()
        pytest.skip("there is a GPU")
    providers = [onnxruntime.CUDA, onnxruntime.CPU]
    monkeypatch.setattr(onnxruntime.ort, "get_available_providers", lambda: providers)
    with pytest.raises(
        BackendError, match=r"onnxruntime-cuda: .*(driver is not|no GPU|CUDA_ERROR)"
    ):
        backends.select("onnxruntime-cuda", {"fp32": variant("float32")}, None)
    options = (onnxruntime.CUDA, {"device_id": "0"})
    with pytest.raises(BackendError, match="no arena for the CUDAExecutionProvider"):
        onnxruntime.OnnxRuntime("onnxruntime-cuda", HostMemory(), options, 1)


def test_a_missing_package_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Candidate:
        raise ModuleNotFoundError("no", name="onnxruntime")

    monkeypatch.setattr(backends, "BACKENDS", {"onnxruntime": missing})
    with pytest.raises(BackendError, match="the package 'onnxruntime' is not installed"):
        backends.select("auto", {"fp32": variant("float32")}, None)
