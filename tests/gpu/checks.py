"""What only a machine with an NVIDIA card can tell, in one command: ``make gpu-checks``.

Not run on hardware yet. Every check has a process of its own and ends in figures or in one line
that says why there are none, so that ten minutes with a card give every answer that they can.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from sana_rt.benchmarks.conditions import conditions
from sana_rt.benchmarks.processes import Call
from sana_rt.benchmarks.speed.card import Card
from sana_rt.errors import BackendError, EngineError, SanaRTError
from sana_rt.model_spec import PRESETS, ModelSpec

HERE = "tests.gpu.checks"
MODELS = ("sana-video-2b-480p", "sana-video-2b-720p", "sana-video-2b-720p-dcaev")
TARGETS = ("sm80", "sm120", "current")  # the last one needs the card
MODES = ("eager", "graph", "compiled")
PACKAGES = ("sana-rt", "torch", "diffusers", "onnxruntime-gpu", "cuda-python", "tensorrt-rtx-cu13")
LIMIT = 420.0  # seconds a check
WARM_UP, RUNS = 3, 10

Figures = dict[str, Any]


def transformer(model: str, mode: str) -> Figures:
    """diffusers' 2B transformer in bfloat16, random weights, both halves of guidance."""
    import torch
    from diffusers import SanaVideoTransformer3DModel
    from torch.utils.flop_counter import FlopCounterMode

    from sana_rt.export import seeded

    _need_card(torch.cuda.is_available(), "PyTorch")
    spec = PRESETS[model]
    torch.set_default_device("cuda")
    torch.set_default_dtype(torch.bfloat16)
    config = seeded._transformer_config(spec.transformer)
    module = SanaVideoTransformer3DModel.from_config(config).eval().requires_grad_(False)
    inputs = _inputs(spec)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(**inputs)
    torch.cuda.reset_peak_memory_stats()
    run: Callable[[], object] = lambda: module(**inputs)  # noqa: E731
    if mode == "compiled":
        module.compile()
    begin = time.perf_counter()
    seconds = _timed(_graph(run) if mode == "graph" else run)
    flops = counter.get_total_flops()
    return {
        "seconds": statistics.median(seconds),
        "spread": [min(seconds), max(seconds)],
        "warm_up_and_runs": time.perf_counter() - begin,
        "flops": flops,
        "tflops_a_second": flops / statistics.median(seconds) / 1e12,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def driver() -> Figures:
    """The memory layer on the real driver: fills, copies, a timer, and a captured copy."""
    from cuda.bindings import driver as cuda

    from sana_rt.runtime.backends.cuda import CudaMemory

    memory = CudaMemory()
    before = memory.free_bytes()
    one, other = (memory.allocate("float32", (1 << 20,)) for _ in range(2))
    values = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    timer = memory.timer()
    timer.mark("begin")
    memory.fill(one, values)
    memory.copy(other, one)
    timer.mark("fill and copy")
    assert np.array_equal(memory.download(other), values), "a copy differs"
    mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _call(cuda.cuStreamBeginCapture, memory.stream, mode)
    memory.copy(other, one)
    (graph,) = _call(cuda.cuStreamEndCapture, memory.stream)
    (executable,) = _call(cuda.cuGraphInstantiate, graph, 0)
    memory.clear(other)
    _call(cuda.cuGraphLaunch, executable, memory.stream)
    assert np.array_equal(memory.download(other), values), "a replayed copy differs"
    return {"taken_bytes": before - memory.free_bytes(), "seconds": dict(timer.seconds())}


def provider(folder: str) -> Figures:
    """ONNX Runtime's CUDA provider on a small model: latents of the CPU, and no allocation."""
    from sana_rt.export.checkpoint import open_checkpoint
    from sana_rt.export.onnx_export import export_bundle
    from sana_rt.export.seeded import write_checkpoint
    from sana_rt.runtime.session import Session

    checkpoint = open_checkpoint(write_checkpoint(Path(folder) / "checkpoint"))
    root = export_bundle(checkpoint, Path(folder) / "bundle").root
    latents, allocations = {}, []
    for backend in ("onnxruntime-cuda", "onnxruntime"):
        with Session.open(root, variant="fp32", backend=backend) as session:
            request = session.request(prompt="a red circle", seed=7, num_frames=9)
            for _ in range(2):
                chunks = [chunk.latents for chunk in session.latents(request)]
                allocations.append(session.graphs.memory.allocations)
            latents[backend] = np.concatenate(chunks, axis=2)
    cuda, cpu = latents.values()
    return {
        "difference": float(np.abs(cuda - cpu).max() / np.abs(cpu).max()),
        "allocations_of_second_clip": allocations[1] - allocations[0],
    }


def blocks(model: str, folder: str) -> Figures:
    """Full-width graphs with one block through the CUDA provider: a clip, chunk by chunk."""
    from sana_rt.benchmarks import random_bundle
    from sana_rt.benchmarks.speed.session_turn import GraphTimer
    from sana_rt.runtime.inputs import Inputs, PromptEmbeds
    from sana_rt.runtime.session import Session

    root = random_bundle.write(Path(folder) / "bundle", PRESETS[model], lambda _: None).root
    timer = GraphTimer()
    with Session.open(root, backend="onnxruntime-cuda", observers=(timer,)) as session:
        spec = session.model
        steps = {} if spec.transformer.causal else {"num_inference_steps": 2}
        frames = {"num_frames": 961} if spec.transformer.causal else {}
        request = session.request(prompt="", **steps, **frames)
        size = (1, spec.text.max_tokens, spec.transformer.caption_channels)
        one = PromptEmbeds(np.zeros(size, np.float32), np.ones(size[:2], np.int64))
        ends, free = [], []
        for _ in session.latents(request, Inputs(prompt_embeds=(one,) * request.batch)):
            ends.append(time.perf_counter())
            free.append(session.graphs.memory.free_bytes())
        times = {each.graph: each.median_seconds for each in timer.times()}
    return {"graphs": times, "chunk_seconds": np.diff(ends).tolist(), "free_bytes": free}


def plans(folder: str) -> Figures:
    """A full-width bfloat16 block as a plan: what this card's TensorRT-RTX says of it."""
    import tensorrt_rtx

    from sana_rt.benchmarks import bound, random_bundle
    from sana_rt.engines import builder, profiles
    from sana_rt.engines.trt_api import BuildRequest, TensorRT

    model = PRESETS["sana-video-2b-720p"]
    bundle = random_bundle.write(Path(folder) / "bundle", model, lambda _: None)
    graph = bundle.manifest.variant(random_bundle.VARIANT).graphs["block_00"]
    rtx = TensorRT("rtx")
    spans = profiles.profile("block_00", graph, model, bound.workload(model))
    shapes = builder.input_shapes(graph.inputs, spans)
    runtime = tensorrt_rtx.Runtime(tensorrt_rtx.Logger())
    found: Figures = {}
    for name in TARGETS:
        request = BuildRequest(bundle.path(graph.path), rtx.target(name), shapes)
        plan = Path(folder) / f"{name}.plan"
        try:
            builder.build_plan(request, plan, rtx, lambda _: None)
        except EngineError as error:
            found[name] = {"failed": str(error)}
            continue
        data = plan.read_bytes()
        validity = runtime.get_engine_validity(data[: runtime.engine_header_size])
        found[name] = {
            "validity": str(validity),
            "deserialized": runtime.deserialize_cuda_engine(data) is not None,
        }
    return found


def bench(bundle: str, output: str, options: list[str]) -> Figures:
    """``sana-rt bench`` on a bundle that was brought along."""
    from click.testing import CliRunner

    from sana_rt.cli import cli

    done = CliRunner().invoke(cli, ["bench", bundle, "-o", output, *options])
    if done.exit_code:
        raise BackendError(f"`sana-rt bench` ended with {done.exit_code}: {done.stderr[-400:]}")
    return {"report": f"{output}/report.json"}


def _need_card(found: bool, who: str) -> None:
    if not found:
        raise BackendError(f"{who} finds no card that it can use.")


def _inputs(spec: ModelSpec) -> dict[str, Any]:
    """What one forward pass of the model's default clip takes, for both halves of guidance."""
    import torch

    from sana_rt import geometry

    sampling, tokens = spec.sampling, spec.text.max_tokens
    shape = geometry.latents_shape(spec, sampling.num_frames, sampling.height, sampling.width)
    return {
        "hidden_states": torch.randn(2, *shape[1:]),
        "encoder_hidden_states": torch.randn(2, tokens, spec.transformer.caption_channels),
        "encoder_attention_mask": torch.ones(2, tokens, dtype=torch.int64),
        "timestep": torch.full((2,), 500.0),
        "return_dict": False,
    }


def _graph(run: Callable[[], object]) -> Callable[[], object]:
    """``run`` captured as a CUDA graph."""
    import torch

    side = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        run()
    return graph.replay


def _timed(run: Callable[[], object]) -> list[float]:
    """Seconds of runs behind a warm-up, by the device's clock."""
    import torch

    seconds = []
    with torch.no_grad():
        for _ in range(WARM_UP + RUNS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
    return seconds[WARM_UP:]


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> tuple[Any, ...]:
    status, *values = function(*arguments)
    if int(status) != 0:
        raise BackendError(f"{function.__name__} failed ({status.name}).")
    return tuple(values)


def all_checks(folder: Path, output: Path, bundle: Path | None) -> dict[str, dict[str, Any]]:
    """Function and arguments of every check, by its name in the report."""
    found: dict[str, dict[str, Any]] = {"driver": {"function": "driver"}}
    for model in MODELS:
        for mode in MODES:
            arguments = {"model": model, "mode": mode}
            found[f"transformer {model} {mode}"] = {"function": "transformer", **arguments}
    found["provider"] = {"function": "provider", "folder": str(folder)}
    for model in (MODELS[0], "longsana-2b-480p"):
        found[f"blocks {model}"] = {"function": "blocks", "model": model, "folder": str(folder)}
    found["plans"] = {"function": "plans", "folder": str(folder)}
    if bundle is not None:
        arguments = {"bundle": str(bundle), "output": str(output / "bench"), "options": []}
        found["bench"] = {"function": "bench", **arguments}
    return found


def run(function: str, **arguments: Any) -> Figures:
    """The figures of a check, or the line that says why there are none."""
    begin = time.monotonic()
    try:
        figures = Call(f"{HERE}:{function}", arguments, threads=2, limit=LIMIT).run().value
    except SanaRTError as error:
        figures = {"failed": str(error)}
    return {**figures, "check_seconds": round(time.monotonic() - begin, 1)}


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/gpu-checks"))
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle to benchmark as well.")
@click.option("--only", multiple=True, help="Beginning of the names of checks.  [default: all]")
def main(output: Path, bundle: Path | None, only: tuple[str, ...]) -> None:
    """Run every check; what is known is in the report after each of them."""
    output.mkdir(parents=True, exist_ok=True)
    card = Card()
    identity = card.identity()
    report: dict[str, Any] = {
        "conditions": conditions(PACKAGES, threads=2),
        "card": card.why_not if identity is None else str(identity),
    }
    folder = Path(tempfile.mkdtemp())
    try:
        for name, check in all_checks(folder, output, bundle).items():
            if only and not name.startswith(only):
                continue
            shutil.rmtree(folder / "bundle", ignore_errors=True)
            report[name] = run(**check)
            (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
            line = report[name].get("failed") or json.dumps(report[name])
            click.echo(f"{name}: {line.splitlines()[0]}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
