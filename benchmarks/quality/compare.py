"""What a quantized variant costs in quality: the same prompts and seeds, compared with a baseline.

Two ways to compare latents, step by step. *Free-running*: each variant goes its own way, so
differences add up as they do for a user. *Teacher-forced*: in front of every step the variant
is given the baseline's latents, so that the error of one step is seen by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

from sana_rt.benchmarks.quality import scorer as scorers
from sana_rt.benchmarks.quality.scorer import Score, Scorer
from sana_rt.bundle import Bundle
from sana_rt.errors import UsageError, VerificationError
from sana_rt.graph_names import SOLVER
from sana_rt.manifest import Quantization
from sana_rt.model_spec import Frozen
from sana_rt.progress import ReportProgress, silent
from sana_rt.runtime.backends.base import Binding
from sana_rt.runtime.backends.buffers import Memory
from sana_rt.runtime.observers import Observer
from sana_rt.runtime.request import Request
from sana_rt.runtime.session import Session

Frames = npt.NDArray[np.uint8]  # [T, height, width, 3]
Latents = npt.NDArray[np.float32]

_similarity: Final[Callable[..., float]] = structural_similarity

#: dB; what is shown for equal frames, whose PSNR is infinite. One byte of a clip of 2^20 bytes
#: that is off by one gives 108.
IDENTICAL: Final = 120.0

_RULE: Final = (
    "latent error: the norm of the difference over the norm of the baseline's latents, by step, "
    "the mean of all clips; PSNR (dB) and SSIM of 8-bit frames, the mean of all frames of all clips"
)


class VariantQuality(Frozen, frozen=True):
    """A variant against the baseline; ``by_frame`` shows whether a clip drifts away."""

    variant: str
    recipe: str | None
    psnr: float
    worst_psnr: float  # of a clip
    ssim: float
    free_error: tuple[float, ...]  # by step
    forced_error: tuple[float, ...]
    psnr_by_frame: tuple[float, ...]


class Report(Frozen, frozen=True):
    """The comparison, and the conditions it was made under."""

    model: str
    checkpoint: str
    baseline: str
    backend: str
    rule: str
    prompts: tuple[str, ...]
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    seeds: tuple[int, ...]
    variants: tuple[VariantQuality, ...]
    scorer: str | None
    scores: dict[str, dict[str, Score]]  # of the scorer, by variant, the baseline first


@dataclass(frozen=True, eq=False)
class Step:
    """What the solver wrote in one step."""

    latents: Latents
    sample: Latents


@dataclass(frozen=True, eq=False)
class Clip:
    """A played request."""

    frames: Frames
    steps: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A report, and for each prompt the frames of every variant, the baseline first."""

    report: Report
    frames: tuple[dict[str, Frames], ...]


class SolverWatch(Observer):
    """Keeps what the solver writes, and can put a teacher's values in its place."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._teacher: Sequence[Step] = ()

    def restart(self, teacher: Sequence[Step] = ()) -> None:
        """Watch another clip."""
        self.steps, self._teacher = [], teacher

    def after(self, binding: Binding, memory: Memory) -> None:
        """After the solver, keep its step."""
        if binding.graph != SOLVER:
            return
        outputs = [binding.outputs[name] for name in ("latents_out", "sample")]
        self.steps.append(Step(*map(memory.download, outputs)))
        if self._teacher:
            right = self._teacher[len(self.steps) - 1]
            for buffer, value in zip(outputs, (right.latents, right.sample), strict=True):
                memory.upload(buffer, value)


class Player:
    """A variant of a bundle that plays requests."""

    def __init__(self, bundle: Bundle, variant: str, threads: int | None) -> None:
        self._watch = SolverWatch()
        self._session = Session.open(
            bundle.root,
            variant=variant,
            backend="onnxruntime",
            threads=threads,
            observers=(self._watch,),
        )
        self.backend = self._session.backend

    def play(self, request: Request) -> Clip:
        """Make a clip."""
        self._watch.restart()
        frames = np.concatenate(list(self._session.generate(request)))
        return Clip(frames, tuple(self._watch.steps))

    def forced(self, request: Request, teacher: Sequence[Step]) -> tuple[Step, ...]:
        """The steps that the variant takes from where the teacher is."""
        self._watch.restart(teacher)
        for _ in self._session.latents(request):
            pass
        return tuple(self._watch.steps)


def compare(
    bundle: Bundle,
    baseline: str,
    variants: Sequence[str],
    requests: Sequence[Request],
    *,
    scorer: Scorer | None = None,
    scored: int | None = None,
    threads: int | None = None,
    progress: ReportProgress = silent,
) -> Comparison:
    """Play ``requests`` on the baseline and on each variant, and let ``scorer`` play its own.

    The scorer comes first, with ``scored`` prompts or, if that is None, all that it has.

    Raises:
        UsageError: nothing to compare, or the scorer gave no scores.
        ManifestError: the bundle has no such variant.
        VerificationError: the baseline, played twice, is not equal to itself.
        RequestError: the bundle cannot decode.
    """
    if not variants or not requests:
        raise UsageError("There is nothing to compare.", expected="variants and prompts.")
    names = dict.fromkeys((baseline, *variants))
    for name in names:
        bundle.manifest.variant(name)
    scores = {}
    if scorer is not None:
        options = {"prompts": scored, "threads": threads}
        scores = {name: _scores(bundle, name, scorer, progress, **options) for name in names}
    player = Player(bundle, baseline, threads)
    wanted = _play_all(player, baseline, requests, progress)
    _check_repeats(player.play(requests[0]), wanted[0], baseline)
    pictures = [{baseline: clip.frames} for clip in wanted]
    backend, found = player.backend, []
    del player  # its weights make room
    for name in variants:
        player = Player(bundle, name, threads)
        clips = _play_all(player, name, requests, progress)
        forced = [
            player.forced(request, clip.steps)
            for request, clip in zip(requests, wanted, strict=True)
        ]
        made = bundle.manifest.variant(name).quantization
        found.append(_quality(name, made, wanted, clips, forced))
        for picture, clip in zip(pictures, clips, strict=True):
            picture[name] = clip.frames
    named = None if scorer is None else scorers.name(scorer)
    report = _report(bundle, baseline, backend, requests, tuple(found), scorer=named, scores=scores)
    return Comparison(report, tuple(pictures))


def _scores(
    bundle: Bundle,
    variant: str,
    scorer: Scorer,
    progress: ReportProgress,
    *,
    prompts: int | None,
    threads: int | None,
) -> dict[str, Score]:
    with Session.open(
        bundle.root,
        variant=variant,
        backend="onnxruntime",
        threads=threads,
        keep_text_encoder=True,
    ) as session:
        return scorers.score(
            scorer, session, prompts, lambda done, total: progress(variant, done, total)
        )


def psnr(frames: Frames, baseline: Frames) -> float:
    """Peak signal-to-noise ratio of 8-bit frames in dB, at most :data:`IDENTICAL`."""
    error = np.mean(np.square(frames.astype(np.float64) - baseline))
    return IDENTICAL if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(frames: Frames, baseline: Frames) -> float:
    """Mean structural similarity of the frames."""
    values = [
        _similarity(one, other, channel_axis=-1)
        for one, other in zip(frames, baseline, strict=True)
    ]
    return float(np.mean(values))


def latent_error(steps: Sequence[Step], baseline: Sequence[Step]) -> npt.NDArray[np.float64]:
    """The relative error of the latents after each step."""
    return np.array(
        [
            np.linalg.norm(one.latents - other.latents) / np.linalg.norm(other.latents)
            for one, other in zip(steps, baseline, strict=True)
        ]
    )


def _play_all(
    player: Player,
    name: str,
    requests: Sequence[Request],
    progress: ReportProgress,
) -> list[Clip]:
    clips = []
    for index, request in enumerate(requests):
        progress(name, index, len(requests))
        clips.append(player.play(request))
    return clips


def _check_repeats(again: Clip, first: Clip, baseline: str) -> None:
    same = np.array_equal(again.frames, first.frames)
    if not same or latent_error(again.steps, first.steps).any():
        raise VerificationError(
            f"The variant {baseline!r} gave two clips for one request.",
            expected="equal clips: otherwise differences between variants mean nothing.",
            remedy="report it, with the versions that `sana-rt doctor` prints.",
        )


def _quality(
    name: str,
    made: Quantization | None,
    wanted: Sequence[Clip],
    clips: Sequence[Clip],
    forced: Sequence[Sequence[Step]],
) -> VariantQuality:
    pairs = list(zip(clips, wanted, strict=True))
    by_frame = np.array(
        [
            [psnr(a, b) for a, b in zip(one.frames, other.frames, strict=True)]
            for one, other in pairs
        ]
    )
    free = np.mean([latent_error(one.steps, other.steps) for one, other in pairs], axis=0)
    apart = [latent_error(steps, clip.steps) for steps, clip in zip(forced, wanted, strict=True)]
    return VariantQuality(
        variant=name,
        recipe=None if made is None else str(made),
        psnr=float(by_frame.mean()),
        worst_psnr=float(by_frame.mean(axis=1).min()),
        ssim=float(np.mean([ssim(one.frames, other.frames) for one, other in pairs])),
        free_error=tuple(free.tolist()),
        forced_error=tuple(np.mean(apart, axis=0).tolist()),
        psnr_by_frame=tuple(by_frame.mean(axis=0).tolist()),
    )


def _report(
    bundle: Bundle,
    baseline: str,
    backend: str,
    requests: Sequence[Request],
    found: tuple[VariantQuality, ...],
    *,
    scorer: str | None,
    scores: dict[str, dict[str, Score]],
) -> Report:
    first = requests[0]
    return Report(
        model=bundle.manifest.model.name,
        checkpoint=bundle.manifest.variant(baseline).source.sha256,
        baseline=baseline,
        backend=backend,
        rule=_RULE,
        prompts=tuple(request.prompt for request in requests),
        height=first.height,
        width=first.width,
        num_frames=first.num_frames,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        seeds=tuple(request.seed for request in requests),
        variants=found,
        scorer=scorer,
        scores=scores,
    )
