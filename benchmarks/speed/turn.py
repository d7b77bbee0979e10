"""A turn: one side of a benchmark loads, warms up and plays the same clips as the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from sana_rt.errors import ComparisonError
from sana_rt.model_spec import Count, Frozen, ModelSpec, Natural
from sana_rt.runtime.request import Request

Frames = npt.NDArray[np.uint8]  # [T, height, width, 3]
Device = Literal["cpu", "cuda"]
Latents = npt.NDArray[np.float32]  # [1, C, T, h, w]

#: What is timed, in the order of a clip, and where it begins and ends. Times are those of a host
#: that waits for the device, except where the device's own clock is named.
BOUNDARIES: Final[Mapping[str, str]] = {
    "load": "from nothing to graphs and weights ready for a prompt, files in the page cache; "
    "once per process",
    "compile": "the part of loading that opens graphs: optimization, just-in-time compilation",
    "warm_up": "the first clip of a process, of two steps where the solver allows that",
    "text": "from the prompt and the negative prompt to their embeddings",
    "step": "from the end of a denoising step to the end of the next of the same chunk, by the "
    "device's clock",
    "denoise": "from the embeddings to finished latents on the host: all steps of all chunks",
    "commit": "the pass that adds a finished chunk to the state of a block-causal model, by the "
    "device's clock",
    "decode": "from finished latents to frames on the host, all of a clip",
    "first_frame": "from the prompt to the first frames on the host",
    "clip": "from the prompt to the last frame on the host, or to the latents if nothing is "
    "decoded",
}
#: Boundaries that are no part of a clip, and differ in what they hold from side to side.
APART: Final = frozenset({"compile", "warm_up"})

_WARM_UP_STEPS: Final = 2


class SessionJob(Frozen, frozen=True):
    """What the runtime plays; ``keep`` is a folder for what the first request makes."""

    bundle: str
    variant: str
    backend: str
    threads: int | None
    requests: tuple[Request, ...]
    keep: str | None = None


class DiffusersJob(Frozen, frozen=True):
    """What diffusers' pipeline plays; ``keep`` is a folder for what the first request makes."""

    checkpoint: str
    device: Device
    dtype: str
    compiled: bool
    threads: int
    requests: tuple[Request, ...]
    decode: bool = True
    keep: str | None = None


class Work(Frozen, frozen=True):
    """What was played: what must be equal if times are to be compared.

    ``passes`` are those of the transformer, and ``decoded`` frames are counted, not asked for.
    """

    model: str
    checkpoint: str  # SHA-256 of the weights that all sides were made from
    height: Count
    width: Count
    num_frames: Count
    num_inference_steps: Count
    guidance_scale: float
    solver: str
    flow_shift: float
    prompts: Count
    passes: Count
    decoded: Natural

    @staticmethod
    def of(
        model: ModelSpec,
        checkpoint: str,
        requests: Sequence[Request],
        *,
        passes: int,
        decoded: int,
    ) -> Work:
        """The work of ``requests``, which differ in prompt and seed only, with what was counted."""
        one = requests[0]
        return Work(
            model=model.name,
            checkpoint=checkpoint,
            height=one.height,
            width=one.width,
            num_frames=one.num_frames,
            num_inference_steps=one.num_inference_steps,
            guidance_scale=one.guidance_scale,
            solver=one.solver,
            flow_shift=one.flow_shift,
            prompts=len(requests),
            passes=passes,
            decoded=decoded,
        )

    def check(self, other: Work, names: tuple[str, str]) -> None:
        """Raise :class:`ComparisonError` unless the work of the two sides called so is equal."""
        mine, others = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        unequal = [name for name in mine if mine[name] != others[name]]
        if unequal:
            said = "; ".join(f"{name} is {mine[name]} and {others[name]}" for name in unequal)
            raise ComparisonError(
                f"{names[0]} and {names[1]} did not do the same work: {said}.",
                expected="equal work; a ratio of these times would mean nothing.",
                remedy="measure both with the same workload, steps, guidance and prompts.",
            )


class GraphTime(Frozen, frozen=True):
    """The runs of one graph in a clip, by the device's clock, while an observer watched."""

    graph: str
    runs: Count
    seconds: float  # of all runs
    median_seconds: float  # of one


class KernelTime(Frozen, frozen=True):
    """A kernel as TensorRT calls it, and the median of one run of its graph."""

    name: str
    seconds: float


class GraphKernels(Frozen, frozen=True):
    """The kernels of a graph, in the order in which TensorRT tells their times."""

    graph: str
    runs: Count
    kernels: tuple[KernelTime, ...]


class TurnCard(Frozen, frozen=True):
    """The card that a turn was played on, as CUDA's driver calls it."""

    name: str
    compute_capability: str


class Turn(Frozen, frozen=True):
    """What one process measured; ``seconds`` are by boundary, in the order they were taken."""

    work: Work
    backend: str
    device: Device
    dtype: str
    seconds: dict[str, tuple[float, ...]]
    plans: bool  # whether compiled plans were played, not graphs
    device_bytes: Natural | None  # most that was taken of a card since the process had it
    card: TurnCard | None


class Clip:
    """What a turn made of its first prompt, in a folder: latents, and frames if it decodes."""

    def __init__(self, folder: Path | str) -> None:
        self._latents, self._frames = Path(folder, "latents.npy"), Path(folder, "frames.npy")

    def save(self, latents: Latents, frames: Frames | None) -> None:
        """Write both as ``.npy``."""
        self._latents.parent.mkdir(parents=True, exist_ok=True)
        np.save(self._latents, latents)
        if frames is not None:
            np.save(self._frames, frames)

    def latents(self) -> Latents:
        """The latents of the whole clip."""
        latents: Latents = np.load(self._latents)
        return latents

    def frames(self) -> Frames | None:
        """The frames, or None."""
        return np.load(self._frames) if self._frames.exists() else None


def taken(free: Sequence[int | None]) -> int | None:
    """The most bytes of a device that were taken, from what was free; None if it was not told."""
    told = [each for each in free if each is not None]
    return max(told) - min(told) if told else None


def warm_up(request: Request) -> Request:
    """A shorter clip of the same size: two steps, unless the model knows its own steps only."""
    steps = request.num_inference_steps
    if request.solver != "renoise":
        steps = min(_WARM_UP_STEPS, steps)
    return msgspec.structs.replace(request, num_inference_steps=steps)
