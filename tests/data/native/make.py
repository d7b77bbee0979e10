"""Writes vectors.json: numbers of the Python runtime that another language must compute, too.

    python tests/data/native/make.py

float32 values are their bits, so that nothing is lost on the way.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from onnx import AttributeProto, TensorProto, helper

from sana_rt import geometry, onnx_file
from sana_rt.manifest import DimRange, Graph, Quantization, Source, Variant
from sana_rt.model_spec import PRESETS, ModelSpec, StreamingSpec
from sana_rt.runtime import backends, noise, solver
from sana_rt.runtime.backends import buffers, onnxruntime
from sana_rt.runtime.backends.base import Artifact
from sana_rt.runtime.backends.onnxruntime_rtx import provider_options
from sana_rt.runtime.text import PromptTokenizer, prompt_text
from sana_rt.tensors import TensorSpec

HERE = Path(__file__).parent
TOKENIZER = HERE.parents[2] / "examples/shapes/checkpoints/tokenizer/tokenizer.json"
CAUSAL = PRESETS["longsana-2b-480p"]

PROMPTS = (
    "",
    "a red circle",
    "  a  Red\tcircle\n",
    "一个红色的圆形向右移动，背景是灰色。",
    "😀👩‍👩‍👧 e\u0301 ﬁ ｆｕｌｌ",
    "<bos>a<pad>b<eos><unk>",
    "\u0000\u0007\u200b\ufeff\u00a0x\u3000",
    "it's 3.14, we'll see 1,000 things!!",
    "ΑΣ ΟΔΥΣΣΕΥΣ. Σ ΣΑ İSTANBUL",
)
ALPHABET = "aAéßΣİ 　\t\n.,'’1234½a圆形移动的黑色蓝方红ひ한🙂\u0301\u200d\u0000\u0085<>bos"


def model(chunk_frames: int) -> ModelSpec:
    """LongSANA with chunks of so many latent frames."""
    streaming = StreamingSpec(chunk_frames=chunk_frames)
    return msgspec.structs.replace(CAUSAL, streaming=streaming)


def bits(values: np.ndarray) -> list[int]:
    """The bits of float32 values."""
    return [int(value) for value in values.astype(np.float32).view(np.uint32).ravel()]


def noises() -> list[dict[str, Any]]:
    """Noise at a few addresses."""
    cases = [
        (0, 0, 1, (1, 3, 3), 0),
        (2**64 - 1, 5, 8, (4, 2, 3), 2),
        (2**32 + 7, 1023, 1024, (16, 1, 5), 1000),
    ]
    return [
        {
            "seed": seed,
            "frames": [start, stop],
            "shape": list(shape),
            "step": step,
            "bits": bits(
                noise.gaussian(seed, frames=range(start, stop), frame_shape=shape, step=step)
            ),
        }
        for seed, start, stop, shape, step in cases
    ]


def schedules() -> list[dict[str, Any]]:
    """Timesteps and coefficients of every solver."""
    counted = [
        (name, count, shift, make(count, shift))
        for name, make in (("dpmpp_2m", solver.dpmpp_2m), ("flow_euler", solver.flow_euler))
        for count, shift in ((1, 3.0), (2, 8.0), (20, 3.0), (50, 8.0), (100, 1.0))
    ]
    lists = [(1000.0, 960.0, 889.0, 727.0), (999.5,), (1000.0, 500.0, 0.25)]
    listed = [("renoise", steps, 7.0, solver.renoise(steps, 7.0)) for steps in lists]
    return [
        {
            "solver": name,
            "of": of,
            "flow_shift": shift,
            "timesteps": [step.timestep for step in steps],
            "coefficients": [
                bits(solver.coefficients(step, 4.5, 2, condition_frames=1)) for step in steps
            ],
        }
        for name, of, shift, steps in [*counted, *listed]
    ]


def chunks() -> list[dict[str, Any]]:
    """Chunks of block-causal clips, and the rotary positions of their frames."""
    cases = [(10, 21, 0), (10, 261, 0), (10, 19, 0), (4, 1, 0), (4, 33, 5), (4, 8, 8), (1, 3, 1)]
    found = []
    for size, frames, start in cases:
        cut = geometry.chunk_ranges(model(size), frames, start)
        ranges = [[one.start, one.stop] for one in cut]
        positions = [list(one) for one in cut]
        found.append(
            {"size": size, "latent_frames": frames, "start": start, "chunks": ranges}
            | {"positions": positions}
        )
    return found


def lengths() -> list[dict[str, Any]]:
    """Frames of a number of seconds."""
    cases = [(0.1, 30), (5.0, 16), (60.0, 16), (1e-9, 8), (2.5000001, 16), (0.3, 10), (4.1, 240)]
    return [
        {"seconds": seconds, "fps": fps, "frames": geometry.num_frames(seconds, fps, CAUSAL)}
        for seconds, fps in cases
    ]


def tokens() -> list[dict[str, Any]]:
    """Token ids of texts."""
    spec = msgspec.structs.replace(CAUSAL.text, vocab_size=512)
    tokenizer = PromptTokenizer.from_file(TOKENIZER, spec).tokenizer
    chosen = random.Random(7)
    made = ["".join(chosen.choices(ALPHABET, k=chosen.randint(1, 24))) for _ in range(150)]
    return [{"text": text, "ids": tokenizer.encode(text).ids} for text in (*PROMPTS, *made)]


def texts() -> list[dict[str, Any]]:
    """What becomes of prompts before they are tokens."""
    return [
        {
            "prompt": prompt,
            "motion_score": score,
            "lowercase": lowercase,
            "text": prompt_text(prompt, motion_score=score, lowercase=lowercase),
        }
        for prompt in PROMPTS
        for score, lowercase in ((None, False), (30, True), (0, True))
    ]


def bfloat16() -> list[dict[str, int]]:
    """float32 values, rounded: ties, subnormal numbers, overflow, NaN."""
    chosen = np.random.default_rng(3).integers(0, 2**32, 200, dtype=np.uint32)
    edges = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800001, 0xFFFFFFFF, 0x00000001]
    given = np.concatenate([np.array(edges, np.uint32), chosen])
    rounded = buffers.to_device_dtype(given.view(np.float32), "bfloat16")
    pairs = zip(given.tolist(), rounded.tolist(), strict=True)
    return [{"float32": one, "bfloat16": other} for one, other in pairs]


KEYS: Final = (
    "session.intra_op.allow_spinning",
    "session.use_env_allocators",
    "session.use_device_allocator_for_initializers",
    "session.disable_prepacking",
)


def sessions() -> list[dict[str, Any]]:
    """The configuration of ONNX Runtime's sessions."""
    backend = onnxruntime.cpu()
    found = []
    for lasting in (True, False):
        options = backend._options(lasting=lasting)
        entries = {}
        for key in KEYS:
            try:
                entries[key] = options.get_session_config_entry(key)
            except RuntimeError:
                continue  # it is not set
        found.append({"lasting": lasting, "entries": entries})
    return found


def artifacts() -> list[dict[str, Any]]:
    """What NVIDIA's plug-in is told of graphs."""
    sizes = {"batch": (2, 2, 2), "frames": (1, 10, 19), "rows": (30, 30, 30), "length": (9, 9, 9)}
    signatures = {
        "block_00": [
            TensorSpec("tokens", "bfloat16", ("batch", "frames", "rows", 112)),
            TensorSpec("constant", "float32", (2, 3)),
            TensorSpec("frame_index", "int64", ("frames",)),
        ],
        "fixed": [TensorSpec("constant", "float32", (2, 3))],
    }
    found = []
    for name, inputs in signatures.items():
        graph = Graph("x.onnx", (), 23, tuple(inputs), ())
        ranges = {dim: DimRange(*size) for dim, size in sizes.items()}
        artifact = Artifact(name, graph, Path("x.onnx"), sizes=ranges)
        specs = [[spec.name, spec.dtype, list(spec.shape)] for spec in inputs]
        options = provider_options(artifact, 0xABC, Path("kernels"))
        found.append({"inputs": specs, "sizes": sizes, "stream": 0xABC, "options": options})
    return found


def offers() -> list[dict[str, Any]]:
    """Why a backend does not play a variant; what is not there, it plays."""
    variants = {
        f"{dtype} {form or 'plain'}": Variant(
            dtype,
            "",
            Source("", "", "0" * 64),
            {},
            quantization=None if form is None else Quantization("max", "0" * 64, form),
        )
        for dtype in ("float32", "bfloat16", "float16")
        for form in (None, "emulation", "device")
    }
    return [
        {"backend": name, "dtype": variants[one].dtype, "form": one.partition(" ")[2]}
        | {"refusal": found.refusals.get(one)}
        for name in ("onnxruntime-cuda", "onnxruntime-rtx", "onnxruntime")
        for found in [backends.BACKENDS[name]().offers(variants)]
        for one in variants
    ]


def onnx_content() -> bytes:
    """A small model with a tensor outside of it among the weights, in a node and in a branch."""
    outside = [
        TensorProto(
            name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL
        )
        for _ in range(3)
    ]
    for index, tensor in enumerate(outside):
        tensor.external_data.add(key="location", value=f"weights{index}")
        tensor.external_data.add(key="offset", value=str(4096 * index))
    branch = helper.make_graph([], "branch", [], [], outside[2:])
    node = helper.make_node("Anything", ["x"], ["y"])
    node.attribute.append(AttributeProto(name="a", type=AttributeProto.TENSOR, t=outside[1]))
    node.attribute.append(AttributeProto(name="b", type=AttributeProto.GRAPH, g=branch))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, shape)
        for name, shape in (("x", ["batch", 3]), ("y", []))
    )
    graph = helper.make_graph([node], "main", [x], [y], outside[:1])
    opset = helper.make_opsetid("", 23)
    content: bytes = helper.make_model(graph, opset_imports=[opset]).SerializeToString()
    return content


#: Fields behind a model: its graph as eight and as four bytes, a key of 33 bits, and no number.
_BEHIND = ("39" + "08" * 8, "3d" + "08" * 4, "ba8080801000", "0200", "ffffffff0f00")


def onnx_files() -> dict[str, Any]:
    """What is read of that model, and of it when it is damaged."""
    content, chosen = onnx_content(), random.Random(5)
    edits = [(0, 0, b""), (0, len(content), b"")]
    for _ in range(200):
        inserted = chosen.randbytes(chosen.randint(0, 3))
        edits.append((chosen.randrange(len(content)), chosen.randint(0, 3), inserted))
    edits += [(len(content), 0, bytes.fromhex(behind)) for behind in _BEHIND]
    reads = []
    for at, removed, inserted in edits:
        damaged = content[:at] + inserted + content[at + removed :]
        reads.append({"edit": [at, removed, inserted.hex()], "read": onnx_read(damaged)})
    return {"content": content.hex(), "reads": reads}


def onnx_read(content: bytes) -> dict[str, Any] | str:
    """What is read of a file, or why not."""
    if not content:
        return "it is empty"
    try:
        found = onnx_file.parse(memoryview(content))
    except onnx_file.DamagedOnnxError as error:
        return str(error)
    sides = {
        side: [[spec.name, spec.dtype, list(spec.shape)] for spec in getattr(found, side)]
        for side in ("inputs", "outputs")
    }
    outside = sorted([list(place) for place in found.outside])
    return {"opset": found.opset, "outside": outside, **sides}


def vectors() -> str:
    """The file."""
    made = {
        "noise": noises(),
        "schedules": schedules(),
        "chunks": chunks(),
        "lengths": lengths(),
        "tokens": tokens(),
        "texts": texts(),
        "bfloat16": bfloat16(),
        "sessions": sessions(),
        "cuda": onnxruntime.cuda_options(0xABC),
        "artifacts": artifacts(),
        "offers": offers(),
        "onnx": onnx_files(),
    }
    return json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    (HERE / "vectors.json").write_text(vectors(), encoding="utf-8")
