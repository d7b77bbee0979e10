"""Fixtures shared by the tests."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
from tests import bundles

from sana_rt import files
from sana_rt.manifest import Graph

#: What changes the width or the colours of what commands print.
TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
#: What keeps the hub's client from a hub on this machine.
NETWORK = ("HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def pytest_configure(config: pytest.Config) -> None:
    """Neither the terminal nor the network that tests are started from changes what they see."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    for name in (*TERMINAL, *NETWORK, *map(str.lower, NETWORK)):
        patch.delenv(name, raising=False)
    patch.setenv("TERM", "dumb")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes let one make the small bundle while the others do without it.

    It makes it for the first file; all others that need it come last.
    """
    paths = dict.fromkeys(item.path for item in items if needs_bundle(item))
    order = dict.fromkeys(paths, 2) | dict.fromkeys(list(paths)[:1], 0)
    items.sort(key=lambda item: order.get(item.path, 1))


def needs_bundle(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and "small_bundle" in item.fixturenames


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let there be no room for a file: ``/dev/full`` answers as a full file system does."""
    create, full = files.create_partial, set[Path]()

    def create_partial(path: Path) -> tuple[Path, io.FileIO]:
        partial, file = create(path)
        if path not in full:
            return partial, file
        file.close()
        partial.unlink()
        partial.symlink_to("/dev/full")
        return partial, partial.open("wb", buffering=0)

    monkeypatch.setattr(files, "create_partial", create_partial)
    return full.add


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose processes end when they touch the network (tests/data/no_network.c)."""
    library = tmp_path_factory.mktemp("offline") / "no_network.so"
    source = Path(__file__).parent / "data/no_network.c"
    command = ["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``tokenizer.json`` of the seeded small checkpoint: built like Gemma's, 768 tokens.

    A word carries the space before it, so that an instruction's last space becomes part of the
    prompt's first token.
    """
    from sana_rt.export.seeded import SMALL, write_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, SMALL.text)
    return folder / "tokenizer.json"


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seeded small checkpoint, a diffusers folder."""
    from sana_rt.export.seeded import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, pytestconfig: pytest.Config) -> Path:
    """The small checkpoint as a bundle with the variant ``fp32``, every graph verified.

    Do not write into it.
    """
    from sana_rt.export.checkpoint import open_checkpoint
    from sana_rt.export.onnx_export import export_bundle

    return kept(
        pytestconfig,
        "small-bundle",
        lambda folder: export_bundle(open_checkpoint(small_checkpoint), folder),
    )


def kept(config: pytest.Config, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that ``make`` fills; tracing takes a minute, so it stays in pytest's cache.

    It is made again when the code that makes it changes; of several test processes one makes it
    and the others wait.
    """
    cache = config.cache
    assert cache is not None
    root = cache.mkdir(name) / bundles.key()
    with filelock.FileLock(root.with_suffix(".lock")):
        if not root.is_dir():
            partial = root.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            partial.mkdir()
            make(partial)
            partial.rename(root)
    return root


@pytest.fixture(scope="session")
def graph_file() -> Callable[[Graph], bytes]:
    """The bytes of an ONNX file with the signature and the opset of a graph, and no nodes."""
    from onnx import TensorProto, helper

    numbers = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16}
    numbers |= {"int64": TensorProto.INT64, "uint8": TensorProto.UINT8}

    def write(graph: Graph) -> bytes:
        inputs, outputs = (
            [helper.make_tensor_value_info(t.name, numbers[t.dtype], t.shape) for t in side]
            for side in (graph.inputs, graph.outputs)
        )
        made = helper.make_graph([], "graph", inputs, outputs)
        opset = helper.make_opsetid("", graph.opset)
        content: bytes = helper.make_model(made, opset_imports=[opset]).SerializeToString()
        return content

    return write


@pytest.fixture(scope="session")
def causal_bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle declared block-causal, in chunks of two latent frames.

    Its graphs are those of the bidirectional model; do not write into it.
    """
    root = tmp_path_factory.mktemp("causal") / "bundle"
    bundles.write_causal(small_bundle, root)
    return root


@pytest.fixture(scope="session")
def folder_720p(pytestconfig: pytest.Config) -> Path:
    """``checkpoint`` and ``bundle`` of a small model with LTX-2's autoencoder.

    Do not write into it.
    """
    return kept(pytestconfig, "720p", bundles.write_720p)


@pytest.fixture(scope="session")
def block_bundle(pytestconfig: pytest.Config) -> Path:
    """The two blocks, and nothing else, of a small model in float32 and in bfloat16.

    For what deals with single graphs; do not write into it.
    """
    return kept(pytestconfig, "block-bundle", bundles.write_blocks)


@pytest.fixture(scope="session")
def fp4_dynamic_quantize() -> type:
    """``TRT_FP4DynamicQuantize`` for onnx.reference.

    TensorRT's operator as its documentation defines it, with the types of ml_dtypes, for inputs
    in float32 and in bfloat16.
    """
    import ml_dtypes
    import numpy as np
    from onnx import TensorProto
    from onnx.reference.op_run import OpRun

    def run(
        self: OpRun,
        x: np.ndarray,
        scale: np.ndarray,
        *,
        axis: int,
        block_size: int,
        scale_type: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        assert axis == -1
        assert scale_type == TensorProto.FLOAT8E4M3FN
        blocks = x.reshape(*x.shape[:-1], -1, block_size).astype(np.float32)
        wanted = np.abs(blocks).max(-1, keepdims=True) / (np.float32(6) * scale)
        scales = np.minimum(wanted, 448).astype(ml_dtypes.float8_e4m3fn)
        steps = scales.astype(np.float32) * scale
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(steps == 0, 0, blocks / steps)
        codes = np.clip(scaled, -6, 6).astype(ml_dtypes.float4_e2m1fn)
        return codes.reshape(x.shape), scales[..., 0]

    # onnx.reference finds operators by the names of their classes.
    return type("TRT_FP4DynamicQuantize", (OpRun,), {"op_domain": "trt", "_run": run})
