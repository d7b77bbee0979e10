"""A benchmark from its setup to its report: `sana-rt bench`."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from sana_rt import __version__
from sana_rt.benchmarks.conditions import conditions
from sana_rt.benchmarks.speed import bounds, harness, sides
from sana_rt.benchmarks.speed import report as reports
from sana_rt.benchmarks.speed.bounds import BoundCard, GraphShare
from sana_rt.benchmarks.speed.card import Card, CardIdentity, summary
from sana_rt.benchmarks.speed.harness import Rounds
from sana_rt.benchmarks.speed.report import Report, SideReport
from sana_rt.benchmarks.speed.sides import Setup
from sana_rt.benchmarks.speed.turn import Clip, Frames, GraphTime, Turn
from sana_rt.errors import VerificationError
from sana_rt.progress import ReportProgress

#: Two float32 sides differ by rounding, which guidance and steps multiply: 2e-4 is seen after 20
#: steps. Another model, prompt or noise is off by more than a tenth.
LATENTS_TOLERANCE: Final = 1e-2

Graphs = tuple[tuple[GraphShare, ...], BoundCard | None]

_PACKAGES: Final = (
    *("sana-rt", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13", "cuda-python"),
    *("diffusers", "transformers", "torch", "numpy"),
)


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A report, and what every side made of the first prompt, if it made frames."""

    report: Report
    frames: dict[str, Frames]


def measure(setup: Setup, *, command: str, quick: bool, progress: ReportProgress) -> Benchmark:
    """Play every side in turns, then time the graphs of each variant in a pass of its own.

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
        graphs = _graphs(setup, variants, card.identity(), progress)
        found = tuple(
            _side(setup, name, rounds, graphs.get(name), clips.difference(name))
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
        not_measured=refused | rounds.failures,
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


def _graphs(
    setup: Setup, turns: Mapping[str, Turn], card: CardIdentity | None, progress: ReportProgress
) -> dict[str, Graphs]:
    """The graphs of each variant, timed, with the bounds of its plans."""
    found = {}
    for done, (name, turn) in enumerate(turns.items()):
        progress("Timing graphs", done, len(turns))
        value = setup.session_call("profile", name).run().value
        found[name] = bounds.bounded(
            setup.bundle,
            name,
            setup.requests[0],
            msgspec.convert(value, tuple[GraphTime, ...]),
            plans=turn.plans,
            compute_capability=None if card is None else card.compute_capability,
        )
    return found


def _side(
    setup: Setup, name: str, rounds: Rounds, graphs: Graphs | None, difference: float
) -> SideReport:
    """A side; one that is no variant has no ``graphs``."""
    turns = rounds.turns[name]
    one = turns[0].turn
    made = setup.bundle.manifest.variant(name).quantization if graphs else None
    shares, bound = graphs or ((), None)
    return SideReport(
        name=name,
        kind="variant" if graphs else "diffusers",
        backend=one.backend,
        device=one.device,
        dtype=one.dtype,
        recipe=None if made is None else str(made),
        boundaries=reports.measurements(rounds, name),
        host_peak_bytes=_most(each.peak_bytes for each in turns),
        device_bytes=_most(each.turn.device_bytes for each in turns),
        readings=summary([one for each in turns for one in each.readings]),
        latents_difference=difference,
        graphs=shares,
        bound=bound,
    )


def _most(values: Iterable[int | None]) -> int | None:
    """The largest, or None where they are not told."""
    return max((value for value in values if value is not None), default=None)
