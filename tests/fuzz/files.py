"""Each kind of file that a user can be given, through the door that it comes in by."""

from __future__ import annotations

import functools
import json
import lzma
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from tests.fuzz import mutations
from tests.fuzz.target import Target

from sana_rt.export.seeded import SMALL, write_checkpoint, write_tokenizer
from sana_rt.manifest import Graph, Manifest

if TYPE_CHECKING:
    from sana_rt.runtime.text import PromptTokenizer

DATA = Path(__file__).parents[1] / "data"
ROOT = Path(__file__).parents[2]


def _files(pattern: str, folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob(pattern))]


def _read_manifest(path: Path) -> Manifest:
    from sana_rt import manifest

    return manifest.decode(path.read_bytes())


@functools.cache
def _complete() -> Manifest:
    return _read_manifest(DATA / "manifests/valid/complete.json")


def _read_graph(path: Path) -> None:
    from sana_rt.bundle import Bundle

    complete = _complete()
    rope = complete.variant("fp32").graphs["rope"]
    file = msgspec.structs.replace(complete.file(rope.path), path=path.name)
    listed = msgspec.structs.replace(complete, files=(file, *complete.files))
    Bundle(path.parent, listed).check_onnx(msgspec.structs.replace(rope, path=path.name))


def _graph_files(_: Path) -> list[bytes]:
    """What `rope` of the complete manifest could be, with a weight outside of it."""
    from onnx import TensorProto, helper

    names = {"frame_index": "frames", "row_index": "rows", "column_index": "columns"}
    axes = {"rope_t": "frames", "rope_h": "rows", "rope_w": "columns"}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, kind, [dim, *rest]) for name, dim in each.items()]
        for each, kind, rest in (
            (names, TensorProto.INT64, ()),
            (axes, TensorProto.FLOAT, (2, 2)),
        )
    )
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "fp32/timestep.bin"), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Cos", [name], [f"{name}_cos"]) for name in names]
    graph = helper.make_graph(nodes, "rope", inputs, outputs, [weight])
    opsets = [helper.make_opsetid("", 20)]
    return [helper.make_model(graph, opset_imports=opsets).SerializeToString()]


def _read_recipe(path: Path) -> object:
    from sana_rt.quantize import recipe

    layers = [f"block_{index:02d}/{name}" for index in range(4) for name in _LAYERS]
    return recipe.resolve(recipe.load(str(path)).recipe, layers)


_LAYERS = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q"),
    *("attn2.to_out.0", "ff.conv_inverted", "ff.conv_point", "ff.conv_temp", "ff.conv_temp.1"),
)


def _read_calibration(path: Path) -> object:
    from sana_rt.quantize import calibration_table

    return calibration_table.read(path)


def _calibrations(_: Path) -> list[bytes]:
    table = {
        "format": "sana-rt-calibration",
        "format_version": 1,
        "checkpoint": "0" * 64,
        "prompts": "1" * 64,
        "passes": 2,
        "algorithm": "awq-lite",
        "amax": {f"block_00/{name}": 1.5 for name in _LAYERS},
        "channel_scales": {"block_00/attn1.to_q": [0.5, 1.0, 2.0]},
    }
    return [json.dumps(table).encode()]


def _read_plan_log(path: Path) -> object:
    from sana_rt.engines import plan_table

    return plan_table.read(path)


def _plan_logs(_: Path) -> list[bytes]:
    logs = [lzma.decompress(path.read_bytes()) for path in sorted(DATA.glob("plan_logs/*.xz"))]
    return [log for log in logs if len(log) < 200_000] or [log[-150_000:] for log in logs[:1]]


def _read_request(path: Path) -> object:
    from sana_rt.runtime import request

    return request.for_model(SMALL, {"prompt": "x", **request.read_options(path)})


_REQUEST = b"""\
prompt = "a red circle"
negative_prompt = ""
height = 64
width = 96
num_frames = 17
num_inference_steps = 8
guidance_scale = 4.5
solver = "dpmpp_2m"
flow_shift = 8.0
fps = 16
motion_score = 30
seed = 7
lowercase = true
"""


def _read_noise(path: Path) -> object:
    from sana_rt.runtime.inputs import read_noise

    return read_noise(path)


def _arrays(folder: Path) -> list[bytes]:
    path = folder / "noise.npy"
    np.save(path, np.zeros((1, 16, 2, 8, 8), np.float32))
    return [path.read_bytes()]


def _read_embeds(path: Path) -> object:
    from sana_rt.runtime.inputs import read_prompt_embeds

    return read_prompt_embeds(path, guided=True)


def _embeds(folder: Path) -> list[bytes]:
    path = folder / "embeds.npz"
    states, mask = np.zeros((1, 8, 16), np.float32), np.ones((1, 8), np.int64)
    np.savez(
        path,
        prompt_embeds=states,
        prompt_attention_mask=mask,
        negative_prompt_embeds=states,
        negative_prompt_attention_mask=mask,
    )
    return [path.read_bytes()]


def _read_safetensors(path: Path) -> object:
    from sana_rt.export.weights import open_safetensors

    weights = open_safetensors(path)
    return [weights.load(name) for name in weights]


def _safetensors(folder: Path) -> list[bytes]:
    import torch
    from safetensors.torch import save_file

    path = folder / "seed.safetensors"
    save_file({"a.weight": torch.ones(4, 3), "b.bias": torch.ones(5).bfloat16()}, path)
    return [path.read_bytes()]


def _read_torch(path: Path) -> object:
    from sana_rt.export.weights import from_tensors, open_torch

    content = open_torch(path)
    return from_tensors(content.get("state_dict", content), path)


def _torch_files(folder: Path) -> list[bytes]:
    import torch

    path = folder / "seed.pth"
    torch.save({"state_dict": {"x_embedder.proj.weight": torch.ones(4, 3)}}, path)
    return [path.read_bytes()]


def _read_tokenizer(path: Path) -> object:
    from sana_rt.runtime.text import PromptTokenizer

    tokenizer = PromptTokenizer.from_file(path, SMALL.text)
    return tokenizer.encode("a red circle 圆", instruction=True)


def _tokenizers(folder: Path) -> list[bytes]:
    write_tokenizer(folder / "tokenizer", SMALL.text)
    return [(folder / "tokenizer" / "tokenizer.json").read_bytes()]


def _config_target(part: str, name: str, count: int = 3000) -> Target:
    """A configuration file of a checkpoint; the rest of the folder is as it should be."""

    def folder(scratch: Path) -> Path:
        made = scratch / f"checkpoint-{part or 'root'}"
        if not made.is_dir():
            write_checkpoint(made)
        return made

    def seeds(scratch: Path) -> list[bytes]:
        return [(folder(scratch) / part / name).read_bytes()]

    def read(path: Path) -> object:
        from sana_rt.export.checkpoint import open_checkpoint

        checkpoint = folder(path.parent)
        original = (checkpoint / part / name).read_bytes()
        shutil.copyfile(path, checkpoint / part / name)
        try:
            return open_checkpoint(checkpoint)
        finally:
            (checkpoint / part / name).write_bytes(original)

    mutate = mutations.any_of((mutations.of_json,) * 4 + (mutations.of_bytes,))
    return Target(f"config-{part or Path(name).stem}", ".json", seeds, mutate, read, count=count)


def _read_workload(path: Path) -> object:
    from sana_rt.engines import profiles, workloads

    workload = workloads.read(path)
    return [profiles.profile(name, graph, SMALL, workload) for name, graph in _graphs().items()]


@functools.cache
def _graphs() -> dict[str, Graph]:
    """The graphs of the small model, as a manifest has them."""
    from sana_rt.export.graphs import transformer_graphs

    return {
        each.name: Graph(f"{each.name}.onnx", (), 23, each.inputs, each.outputs)
        for each in transformer_graphs(SMALL, "float32")
    }


_WORKLOAD = b"""\
description = "any clip"
num_frames = { min = 1, opt = 17, max = 81 }
height = 64
width = { min = 32, opt = 64, max = 96 }
batch = 2
length = { min = 1, opt = 64, max = 128 }
"""


def _read_instruction(path: Path) -> str:
    from sana_rt.export import instructions

    return instructions.instruction(str(path))


def _read_prompts(path: Path) -> object:
    from sana_rt.cli import prompts_file

    return prompts_file.read(path)


_PROMPTS = "a red circle\n\n  two stars, 圆 \r\nUser Prompt: a quiet scene\n".encode()


def _read_prompt(path: Path) -> object:
    """The text is the prompt, whatever its bytes."""
    from sana_rt.runtime.text import prompt_text

    text = path.read_bytes().decode(errors="surrogateescape")
    tokenizer = _tokenizer(path.parent)
    return [
        tokenizer.encode(prompt_text(text, motion_score=score, lowercase=lower), instruction=lower)
        for score, lower in ((None, False), (30, True), (-1, False))
    ]


@functools.cache
def _tokenizer(folder: Path) -> PromptTokenizer:
    from sana_rt.runtime.text import PromptTokenizer

    write_tokenizer(folder / "own", SMALL.text)
    return PromptTokenizer.from_file(folder / "own" / "tokenizer.json", SMALL.text)


def _read_image(path: Path) -> object:
    from sana_rt.runtime.images import read_image

    return read_image(path, 64, 96)


def _images(folder: Path) -> list[bytes]:
    from sana_rt.runtime.images import write_png

    random = np.random.default_rng(0)
    write_png(folder / "seed.png", random.integers(256, size=(40, 50, 3), dtype=np.uint8))
    plain = (folder / "seed.png").read_bytes()
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    chunk = b"eXIf" + exif
    turned = len(exif).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    return [plain, plain[:33] + turned + plain[33:]]  # behind the header


def _read_lora(path: Path) -> object:
    from typing import NamedTuple

    import torch

    from sana_rt.export import lora, tensor_shapes
    from sana_rt.export.checkpoint import Checkpoint
    from sana_rt.export.weights import LazyTensor, Weights

    class Chosen(NamedTuple):
        path: Path
        scale: float

    tensors = {
        name: LazyTensor(shape, lambda shape=shape: torch.zeros(shape))
        for name, shape in tensor_shapes.transformer(SMALL).items()
    }
    merged = lora.merge(Checkpoint("x", "diffusers", SMALL, Weights(tensors)), [Chosen(path, 0.8)])
    return [merged.transformer.load(name) for name in merged.changed]


def _loras(folder: Path) -> list[bytes]:
    """As diffusers writes one, with PEFT's settings, and as kohya's scripts do."""
    import torch
    from safetensors.torch import save_file

    layer, width = "transformer_blocks.0.attn1.to_q", SMALL.transformer.width
    factors = torch.ones(2, width), torch.ones(width, 2)
    settings = {"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 3.0}, "use_rslora": True}
    header = {f"transformer.{key}": value for key, value in settings.items()}
    names = [f"transformer.{layer}.lora_{side}.weight" for side in "AB"]
    save_file(
        dict(zip(names, factors, strict=True)),
        folder / "seed.safetensors",
        {"lora_adapter_metadata": json.dumps(header)},
    )
    kohya = f"lora_unet_{layer.replace('.', '_')}"
    names = [f"{kohya}.lora_{side}.weight" for side in ("down", "up")]
    tensors = dict(zip(names, factors, strict=True)) | {f"{kohya}.alpha": torch.ones(())}
    fused = "lora_unet_blocks_1_attn_qkv.lora_{}.weight"
    tensors |= {
        fused.format("down"): factors[0].clone(),
        fused.format("up"): torch.ones(3 * width, 2),
    }
    save_file(tensors, folder / "other.safetensors")
    return [(folder / name).read_bytes() for name in ("seed.safetensors", "other.safetensors")]


def _read_list(path: Path) -> object:
    from sana_rt.cli import prompt_list
    from sana_rt.runtime import request

    lines = prompt_list.read(path)
    tell: list[str] = []

    def made(line: prompt_list.Line) -> object:
        options = line.wanted.resolve(SMALL, line.options, line.options, tell.append)
        return request.asked(SMALL, options, seconds=line.wanted.seconds)

    return prompt_list.judged(path, lines, lambda line: line.number, made)


_LIST = b"""\
a red circle
{"prompt": "two", "seed": 7, "aspect": "9:16", "seconds": 3, "negative_prompt": ""}
{"prompt": "three", "size": "64x96", "num_inference_steps": 4, "guidance_scale": 1.5}
"""


def _read_results(path: Path) -> object:
    from sana_rt.cli import list_results

    folder = path.parent / "clips"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / list_results.NAME)
    return list_results.Results(folder).latest


def _results(_: Path) -> list[bytes]:
    record = {
        "command": "generate",
        "model": "small",
        "source": {"checkpoint": "x", "layout": "diffusers", "sha256": "0" * 64},
        "variant": "fp32",
        "request": {"prompt": "x", "height": 32, "guidance_scale": 4.5, "timesteps": None},
        "format": "sana-rt-clip",
        "format_version": 1,
    }
    result = {"output": "0001-x-0.mp4", "status": "started", "line": 1, "record": record}
    done = {**result, "status": "done", "size": 1000, "seconds": 1.5}
    return ["".join(f"{json.dumps(each)}\n" for each in (result, done)).encode()]


_JSON = mutations.any_of((mutations.of_json,) * 4 + (mutations.of_bytes,))
_TEXT = mutations.any_of((mutations.of_text,) * 4 + (mutations.of_bytes,))
_ZIP = mutations.any_of((mutations.of_zip,) * 3 + (mutations.of_bytes,))

FILES = (
    Target(
        "manifest", ".json", lambda _: _files("manifests/valid/*.json", DATA), _JSON, _read_manifest
    ),
    Target("graph", ".onnx", _graph_files, mutations.of_bytes, _read_graph),
    Target(
        "recipe", ".toml", lambda _: _files("quantize/recipes/*.toml", ROOT), _TEXT, _read_recipe
    ),
    Target("calibration", ".json", _calibrations, _JSON, _read_calibration),
    Target("plan-log", ".log", _plan_logs, _TEXT, _read_plan_log),
    Target("request", ".toml", lambda _: [_REQUEST], _TEXT, _read_request),
    Target("workload", ".toml", lambda _: [_WORKLOAD], _TEXT, _read_workload),
    Target("instruction", ".txt", lambda _: [_PROMPTS], _TEXT, _read_instruction),
    Target("prompts", ".txt", lambda _: [_PROMPTS], _TEXT, _read_prompts),
    Target("prompt-list", ".txt", lambda _: [_LIST], _TEXT, _read_list),
    Target("results", ".jsonl", _results, _TEXT, _read_results),
    Target("prompt", ".txt", lambda _: [_PROMPTS], _TEXT, _read_prompt),
    Target(
        "noise",
        ".npy",
        _arrays,
        mutations.any_of((mutations.of_npy, mutations.of_bytes)),
        _read_noise,
    ),
    Target("prompt-embeds", ".npz", _embeds, _ZIP, _read_embeds),
    Target(
        "safetensors",
        ".safetensors",
        _safetensors,
        mutations.any_of((mutations.of_safetensors, mutations.of_bytes)),
        _read_safetensors,
    ),
    Target(
        "lora",
        ".safetensors",
        _loras,
        mutations.any_of((mutations.of_safetensors, mutations.of_bytes)),
        _read_lora,
        count=500,
    ),
    Target("torch", ".pth", _torch_files, _ZIP, _read_torch),
    Target("tokenizer", ".json", _tokenizers, _JSON, _read_tokenizer),
    Target("image", ".png", _images, mutations.of_bytes, _read_image),
    _config_target("", "sana_rt.json"),
    _config_target("", "model_index.json"),
    _config_target("transformer", "config.json"),
    _config_target("vae", "config.json"),
    _config_target("text_encoder", "config.json"),
    _config_target("scheduler", "scheduler_config.json"),
    _config_target("tokenizer", "tokenizer_config.json", count=200),
)
