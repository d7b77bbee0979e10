"""Graphs and small bundles for the engine tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from onnx import ModelProto

from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.engines import workloads
from sana_rt.engines.freshness import Settings
from sana_rt.engines.trt_api import TensorRT
from sana_rt.manifest import FORMAT, FORMAT_VERSION, Graph, Manifest, Source, Variant
from sana_rt.model_spec import PRESETS
from sana_rt.tensors import TensorSpec

DATA = Path(__file__).parents[2] / "data/plan_logs"
DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.BFLOAT16: "bfloat16"}
MODEL = PRESETS["sana-video-2b-480p"]

BundleOf = Callable[[dict[str, ModelProto]], Bundle]


@pytest.fixture(scope="session")
def graphs() -> ModuleType:
    """The functions of tests/data/plan_logs/make.py."""
    spec = importlib.util.spec_from_file_location("plan_logs_make", DATA / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    return TensorRT("rtx")


@pytest.fixture
def bundle_of(tmp_path: Path) -> BundleOf:
    """Write a bundle with one variant, ``v``, of the given graphs."""

    def write(models: dict[str, ModelProto]) -> Bundle:
        listed = {name: _save(tmp_path, name, model) for name, model in models.items()}
        paths = [tmp_path / path for graph in listed.values() for path in _paths(graph)]
        source = Source("random", "diffusers", "0" * 64)
        manifest = Manifest(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            created_by="tests",
            model=MODEL,
            files=bundles.describe(tmp_path, paths),
            variants={"v": Variant("float32", "random weights", source, listed)},
        )
        return bundles.save(tmp_path, manifest)

    return write


@pytest.fixture
def linear_bundle(bundle_of: BundleOf, graphs: ModuleType) -> Bundle:
    """Three graphs that build in a third of a second each."""
    return bundle_of({name: graphs.linear() for name in ("first", "second", "third")})


@pytest.fixture
def settings(rtx: TensorRT) -> Settings:
    """Build variant ``v`` for SM120 and the model's defaults."""
    return Settings("v", rtx.target("sm120"), workloads.for_model(MODEL), "rtx", rtx.version)


def _save(root: Path, name: str, model: ModelProto) -> Graph:
    path = root / "v" / f"{name}.onnx"
    path.parent.mkdir(exist_ok=True)
    onnx.save(
        model, path, save_as_external_data=True, location=f"{name}.onnx.data", size_threshold=0
    )
    weights = path.with_suffix(".onnx.data")
    return Graph(
        path=f"v/{path.name}",
        weights=(f"v/{weights.name}",) if weights.exists() else (),
        opset=23,
        inputs=tuple(_tensor(info) for info in model.graph.input),
        outputs=tuple(_tensor(info) for info in model.graph.output),
    )


def _tensor(info: onnx.ValueInfoProto) -> TensorSpec:
    tensor = info.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec(info.name, DTYPES[tensor.elem_type], shape)


def _paths(graph: Graph) -> tuple[str, ...]:
    return (graph.path, *graph.weights)
