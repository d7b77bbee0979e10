"""A turn of diffusers' pipeline, eager or compiled: the same clips from the same noise.

The transformer and the text encoder compute in ``dtype``, the autoencoder in float32, as
diffusers' documentation of SANA-Video has it. Compiled is the transformer, by ``torch.compile``.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import torch

from sana_rt import geometry
from sana_rt.benchmarks.processes import Report
from sana_rt.benchmarks.speed.turn import (
    Clip,
    DiffusersJob,
    Turn,
    TurnCard,
    Work,
    taken,
    warm_up,
)
from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.model_spec import ModelSpec, SolverName
from sana_rt.runtime import noise
from sana_rt.runtime.request import Request
from sana_rt.runtime.text import prompt_text

Seconds = dict[str, list[float]]


def turn(job: Mapping[str, Any], report: Report) -> Turn:
    """Load, warm up and play the job in this process, which should have done nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own, about their and numpy's futures
        return _Pipeline(msgspec.convert(job, DiffusersJob), report).turn()


class _Pipeline:
    """diffusers' pipeline of a checkpoint, and what it has played since it was warm."""

    def __init__(self, job: DiffusersJob, report: Report) -> None:
        torch.set_num_threads(job.threads)
        self._job, self._report = job, report
        checkpoint = open_checkpoint(Path(job.checkpoint))
        self._spec, self._source = checkpoint.spec, checkpoint.source.sha256
        self._clock = _DeviceClock(job.device)
        self._free = [self._clock.free_bytes()]
        begin = time.perf_counter()
        self._pipeline = _load(job)
        self._clock.wait()
        self._load_seconds = time.perf_counter() - begin
        self._warm_up = warm_up(job.requests[0])
        steps = [each.num_inference_steps for each in (self._warm_up, *job.requests)]
        self._total, self._done = sum(steps), 0
        self._passes = self._decoded = 0

    def turn(self) -> Turn:
        """Warm up, then play every request."""
        begin = time.perf_counter()
        self._play(self._warm_up, None)
        seconds: Seconds = {
            "load": [self._load_seconds],
            "warm_up": [time.perf_counter() - begin],
        }
        self._passes = self._decoded = 0
        for index, request in enumerate(self._job.requests):
            keep = self._job.keep if index == 0 else None
            for name, values in self._play(request, keep).items():
                seconds.setdefault(name, []).extend(values)
        return Turn(
            work=self._work(),
            backend=f"diffusers, {'compiled' if self._job.compiled else 'eager'}",
            device=self._job.device,
            dtype=self._job.dtype,
            seconds={name: tuple(values) for name, values in seconds.items()},
            plans=False,
            device_bytes=taken(self._free),
            card=self._clock.card(),
        )

    def _play(self, request: Request, keep: str | None) -> Seconds:
        """A clip; what is made is written to the folder ``keep``, after the clip."""
        marks: list[Any] = []
        finished: dict[str, Any] = {}

        def stepped(_: object, index: int, __: object, state: dict[str, Any]) -> dict[str, Any]:
            marks.append(self._clock.mark())
            if index + 1 == request.num_inference_steps:
                self._clock.wait()
                finished.update(seconds=time.perf_counter(), latents=state["latents"])
            self._done += 1
            self._report(self._done, self._total)
            return state

        begin = time.perf_counter()
        embeds = self._encode(request)
        self._clock.wait()
        ready = time.perf_counter()
        result = self._pipeline(
            **embeds,
            **self._arguments(request),
            latents=torch.from_numpy(_start(request, self._spec)).to(self._job.device),
            callback_on_step_end=stepped,
        )
        end = time.perf_counter()
        frames = np.asarray(result.frames)[0] if self._job.decode else None
        self._free.append(self._clock.free_bytes())
        self._passes += len(marks)
        self._decoded += 0 if frames is None else len(frames)
        if keep is not None:
            pictures = None if frames is None else np.rint(255 * frames).astype(np.uint8)
            Clip(keep).save(finished["latents"].float().cpu().numpy(), pictures)
        seconds = {
            "text": [ready - begin],
            "step": [self._clock.seconds(*pair) for pair in itertools.pairwise(marks)],
            "denoise": [finished["seconds"] - ready],
            "clip": [end - begin],
        }
        if self._job.decode:  # the first frame comes with the last
            seconds |= {"decode": [end - finished["seconds"]], "first_frame": [end - begin]}
        return seconds

    def _encode(self, request: Request) -> dict[str, Any]:
        """The embeddings of both prompts, as arguments of the pipeline."""
        text = self._spec.text
        prompt = prompt_text(request.prompt, motion_score=request.motion_score)
        encoded = self._pipeline.encode_prompt(
            prompt,
            request.guided,
            negative_prompt=request.negative_prompt,
            device=self._job.device,
            max_sequence_length=text.max_tokens,
            complex_human_instruction=[text.instruction] if text.instruction else None,
        )
        names = ("prompt_embeds", "prompt_attention_mask")
        return dict(zip((*names, *map("negative_{}".format, names)), encoded, strict=True))

    def _arguments(self, request: Request) -> dict[str, Any]:
        return {
            "negative_prompt": None,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "height": request.height,
            "width": request.width,
            "frames": request.num_frames,
            "use_resolution_binning": False,
            "output_type": "np" if self._job.decode else "latent",
        }

    def _work(self) -> Work:
        scheduler = self._pipeline.scheduler
        requests = [
            msgspec.structs.replace(
                request, solver=_solver(scheduler), flow_shift=scheduler.config.flow_shift
            )
            for request in self._job.requests
        ]
        counted = {"passes": self._passes, "decoded": self._decoded}
        return Work.of(self._spec, self._source, requests, **counted)


class _DeviceClock:
    """Moments in the order of a device's work, which CUDA times itself."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"

    def mark(self) -> Any:
        """Now."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, earlier: Any, later: Any) -> float:
        """Seconds between two moments."""
        self.wait()
        return float(earlier.elapsed_time(later) / 1e3 if self._cuda else later - earlier)

    def wait(self) -> None:
        """Return when the device is idle."""
        if self._cuda:
            torch.cuda.synchronize()

    def card(self) -> TurnCard | None:
        """The card, or None on a CPU."""
        if not self._cuda:
            return None
        major, minor = torch.cuda.get_device_capability()
        return TurnCard(torch.cuda.get_device_name(), f"{major}.{minor}")

    def free_bytes(self) -> int | None:
        """What the driver calls free of the card; None on a CPU."""
        return torch.cuda.mem_get_info()[0] if self._cuda else None


def _load(job: DiffusersJob) -> Any:
    library: Any = diffusers  # its classes are typed in parts only
    dtype = getattr(torch, job.dtype)
    pipeline = library.SanaVideoPipeline.from_pretrained(job.checkpoint, torch_dtype=dtype)
    pipeline.vae.to(torch.float32)
    pipeline.to(job.device)
    pipeline.set_progress_bar_config(disable=True)
    if job.compiled:
        pipeline.transformer.compile()
    return pipeline


def _start(request: Request, spec: ModelSpec) -> np.ndarray:
    """The noise that the runtime makes of the request's seed, [1, C, T, h, w]."""
    _, channels, frames, height, width = geometry.latents_shape(
        spec, request.num_frames, request.height, request.width
    )
    shape = (channels, height, width)
    return noise.gaussian(request.seed, frames=range(frames), frame_shape=shape, step=0)


def _solver(scheduler: Any) -> SolverName:
    return "flow_euler" if "Euler" in type(scheduler).__name__ else "dpmpp_2m"
