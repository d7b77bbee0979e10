"""A benchmark from its setup to its report: `sana-rt bench`."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from sana_rt import __version__
from sana_rt.benchmarks.conditions import conditions
from sana_rt.benchmarks.speed import bounds, harness, kernels, sides
from sana_rt.benchmarks.speed import report as reports
from sana_rt.benchmarks.speed.bounds import BoundCard, GraphShare
from sana_rt.benchmarks.speed.card import Card, summary
from sana_rt.benchmarks.speed.harness import Rounds
from sana_rt.benchmarks.speed.kernels import KernelShares
from sana_rt.benchmarks.speed.report import Report, SideReport
from sana_rt.benchmarks.speed.sides import Setup
from sana_rt.benchmarks.speed.turn import Clip, Frames, GraphKernels, GraphTime, Turn
from sana_rt.errors import SanaRTError, VerificationError
from sana_rt.progress import ReportProgress

#: Two float32 sides differ by rounding, which guidance and steps multiply: 2e-4 is seen after 20
#: steps. Another model, prompt or noise is off by more than a tenth.
LATENTS_TOLERANCE: Final = 1e-2

_PACKAGES: Final = (
    *("sana-rt", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13", "cuda-python"),
    *("diffusers", "transformers", "torch", "numpy"),
)


@dataclass(frozen=True)
class Details:
    """The graphs of a variant, the card of their bounds, kernels, and why some are missing."""

    graphs: tuple[GraphShare, ...]
    bound: BoundCard | None
    kernels: tuple[KernelShares, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A report, and what every side made of the first prompt, if it made frames."""

    report: Report
    frames: dict[str, Frames]


def measure(setup: Setup, *, command: str, quick: bool, progress: ReportProgress) -> Benchmark:
    """Play every side in turns, then time each variant's graphs and kernels in other passes.

    ``command`` and ``quick`` are for the report alone.

    Raises:
        UsageError: diffusers cannot play the model.
        BackendError, RequestError, DeviceMemoryError: a variant cannot be played.
        ComparisonError: a side did other work than the baseline.
        VerificationError: diffusers' pipeline plays another model.
        BenchmarkError: the baseline's process failed.
    """
    began = datetime.datetime.now(datetime.UTC)
    before, card = conditions(_PACKAGES, setup.threads_used), Card()
    with tempfile.TemporaryDirectory() as folder:
        clips = _Clips(Path(folder))
        devices, refused = sides.playable(setup, progress)
        playing = tuple(sides.sides(setup, devices, clips.folder))
        rounds = harness.play(playing, setup.rounds, card, check=clips.check_model, report=progress)
        variants = {name: rounds.turns[name][0].turn for name in devices if name in rounds.turns}
        details = {name: _details(setup, name, turn, progress) for name, turn in variants.items()}
        found = tuple(
            _side(setup, name, rounds, details.get(name), clips.difference(name))
            for name in rounds.turns
        )
        frames = {name: Clip(clips.folder / name).frames() for name in rounds.turns}
    report = Report(
        format=reports.FORMAT,
        format_version=reports.FORMAT_VERSION,
        created_by=f"sana-rt {__version__}",
        began=began.isoformat(timespec="seconds"),
        command=command,
        quick=quick,
        rule=reports.RULE,
        work=rounds.turns[rounds.baseline][0].turn.work,
        prompts=tuple(request.prompt for request in setup.requests),
        seeds=tuple(request.seed for request in setup.requests),
        rounds=setup.rounds,
        conditions=before,
        card=card.identity(),
        no_card=card.why_not,
        sides=found,
        not_measured=refused | rounds.failures | _failures(details),
    )
    return Benchmark(report, {name: each for name, each in frames.items() if each is not None})


class _Clips:
    """What the sides made of the first prompt, each in a folder of its name; the baseline first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._float32: dict[str, bool] = {}

    def check_model(self, name: str, turn: Turn) -> None:
        """Raise :class:`VerificationError` if diffusers plays another model than the baseline.

        In float32, where sides differ by rounding alone; the baseline had its turn before.
        """
        self._float32[name] = turn.dtype == "float32"
        baseline = next(iter(self._float32))
        if not turn.backend.startswith("diffusers") or not all(
            self._float32[each] for each in (baseline, name)
        ):
            return
        difference = self.difference(name)
        if not difference <= LATENTS_TOLERANCE:
            raise VerificationError(
                f"The latents of {name} and {baseline} differ by {difference:.2g} of their norm.",
                expected=f"at most {LATENTS_TOLERANCE:g} in float32: otherwise the two play "
                "different models.",
                remedy="make the first variant the one that is not quantized.",
            )

    def difference(self, name: str) -> float:
        """How far a side's latents are from the baseline's, relative to their norm."""
        baseline = Clip(self.folder / next(iter(self._float32))).latents()
        latents = Clip(self.folder / name).latents()
        return float(np.linalg.norm(latents - baseline) / np.linalg.norm(baseline))


def _details(setup: Setup, name: str, turn: Turn, progress: ReportProgress) -> Details:
    """The graphs of a variant, timed, and the kernels of its plans if these were played.

    The rounds are measured by then: what fails here is said in the report, and ends nothing.
    """
    limits = bounds.limits(setup.bundle.manifest.variant(name), plans=turn.plans, played=turn.card)
    value = setup.session_call("profile", name).run(partial(progress, f"Graphs of {name}")).value
    times = msgspec.convert(value, tuple[GraphTime, ...])
    bounded = partial(bounds.bounded, setup.bundle, name, setup.requests[0], times)
    bound = None if limits is None else limits.bound
    try:
        details = Details(bounded(limits), bound)
    except SanaRTError as error:
        return Details(bounded(None), bound, failed={f"bounds of {name}": str(error)})
    if limits is None or not turn.plans:
        return details
    try:
        call = setup.session_call("kernels", name)
        value = call.run(partial(progress, f"Kernels of {name}")).value
        found = msgspec.convert(value, tuple[GraphKernels, ...])
        joined = tuple(kernels.joined(setup.bundle, limits, each) for each in found)
    except (SanaRTError, msgspec.ValidationError) as error:
        return replace(details, failed={f"kernels of {name}": str(error)})
    return replace(details, kernels=joined)


def _failures(details: Mapping[str, Details]) -> dict[str, str]:
    """Why there are no bounds, or no times of the kernels of plans that were played."""
    return {what: why for each in details.values() for what, why in each.failed.items()}


def _side(
    setup: Setup, name: str, rounds: Rounds, details: Details | None, difference: float
) -> SideReport:
    """A side; one that is no variant has no ``details``."""
    turns = rounds.turns[name]
    one = turns[0].turn
    made = setup.bundle.manifest.variant(name).quantization if details else None
    return SideReport(
        name=name,
        kind="variant" if details else "diffusers",
        backend=one.backend,
        device=one.device,
        dtype=one.dtype,
        recipe=None if made is None else str(made),
        boundaries=reports.measurements(rounds, name),
        host_peak_bytes=_most(each.peak_bytes for each in turns),
        device_bytes=_most(each.turn.device_bytes for each in turns),
        readings=summary([one for each in turns for one in each.readings]),
        latents_difference=difference,
        graphs=details.graphs if details else (),
        bound=details.bound if details else None,
        kernels=details.kernels if details else (),
        card=one.card,
    )


def _most(values: Iterable[int | None]) -> int | None:
    """The largest, or None where they are not told."""
    return max((value for value in values if value is not None), default=None)
