"""The sides of a benchmark: variants of a bundle, and diffusers' pipeline of its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from sana_rt import geometry, machine
from sana_rt.benchmarks.processes import Call
from sana_rt.benchmarks.speed.harness import Side
from sana_rt.benchmarks.speed.turn import Device, DiffusersJob, SessionJob
from sana_rt.bundle import Bundle
from sana_rt.engines.workloads import Span, Workload
from sana_rt.errors import SanaRTError, UsageError
from sana_rt.model_spec import ModelSpec
from sana_rt.progress import ReportProgress, silent
from sana_rt.runtime.request import Request, for_model

_MODULE: Final = "sana_rt.benchmarks.speed"


@dataclass(frozen=True)
class Reference:
    """diffusers' pipeline of ``checkpoint``; a compiled turn may take ``limit`` seconds."""

    checkpoint: Path
    limit: float


@dataclass(frozen=True)
class Setup:
    """What is measured: ``variants`` of a bundle, the first of them the baseline.

    One that cannot be played is an error if it is ``required``; else the report names it.
    """

    bundle: Bundle
    variants: tuple[str, ...]
    requests: tuple[Request, ...]
    rounds: int
    backend: str = "auto"
    threads: int | None = None
    required: tuple[str, ...] = ()
    reference: Reference | None = None

    @property
    def threads_used(self) -> int:
        """Threads of the CPU: those asked for, or all."""
        return self.threads or machine.usable_cpus()

    def session_call(self, function: str, variant: str, keep: Path | None = None) -> Call:
        """A call of a function of :mod:`sana_rt.benchmarks.speed.session_turn`."""
        job = SessionJob(
            bundle=str(self.bundle.root),
            variant=variant,
            backend=self.backend,
            threads=self.threads,
            requests=self.requests,
            keep=None if keep is None else str(keep),
        )
        arguments = {"job": msgspec.to_builtins(job)}
        reports = function != "probe"
        return Call(f"{_MODULE}.session_turn:{function}", arguments, self.threads_used, reports)


def playable(
    setup: Setup, progress: ReportProgress = silent
) -> tuple[dict[str, Device], dict[str, str]]:
    """The devices of the variants that can be played here, and why the others cannot.

    The files of those that can have their hashes checked, which also caches them: no turn waits
    for a disk.

    Raises:
        SanaRTError: what opening raised, of a required variant, or where all are refused.
        BundleFileError: a file has another hash than the manifest lists.
    """
    devices: dict[str, Device] = {}
    refused: dict[str, SanaRTError] = {}
    for done, name in enumerate(setup.variants):
        progress("Opening variants", done, len(setup.variants))
        try:
            devices[name] = setup.session_call("probe", name).run().value
        except SanaRTError as error:
            if name in setup.required:
                raise
            refused[name] = error
        else:
            for path in set(setup.bundle.manifest.variant(name).paths()):
                setup.bundle.check_hash(setup.bundle.manifest.file(path))
    if not devices:
        raise next(iter(refused.values()))
    return devices, {name: str(error) for name, error in refused.items()}


def sides(setup: Setup, devices: Mapping[str, Device], keep: Path) -> Iterator[Side]:
    """A side for each variant that can be played, then diffusers' eager and compiled.

    What each makes of the first prompt goes to the folder of its name in ``keep``.

    Raises:
        UsageError: diffusers cannot play the model, or not from this checkpoint.
    """
    for name in devices:
        yield Side(name, setup.session_call("turn", name, keep / name))
    if setup.reference is not None:
        yield from _diffusers(setup, setup.reference, devices, keep)


def _diffusers(
    setup: Setup, reference: Reference, devices: Mapping[str, Device], keep: Path
) -> Iterator[Side]:
    _check_reference(setup, reference)
    baseline, device = next(iter(devices.items()))
    variant = setup.bundle.manifest.variant(baseline)
    for name in ("diffusers-eager", "diffusers-compiled"):
        compiled = name.endswith("compiled")
        job = DiffusersJob(
            checkpoint=str(reference.checkpoint),
            device=device,
            dtype="float32" if device == "cpu" else variant.dtype,
            compiled=compiled,
            threads=setup.threads_used,
            requests=setup.requests,
            decode=variant.decoder is not None,
            keep=str(keep / name),
        )
        arguments = {"job": msgspec.to_builtins(job)}
        limit = reference.limit if compiled else None
        function = f"{_MODULE}.diffusers_turn:turn"
        yield Side(name, Call(function, arguments, setup.threads_used, reports=True, limit=limit))


def _check_reference(setup: Setup, reference: Reference) -> None:
    """Raise :class:`UsageError` unless diffusers' text-to-video pipeline plays the model."""
    from sana_rt.export.checkpoint import open_checkpoint  # noqa: PLC0415 (loads torch)

    model = setup.bundle.manifest.model
    if model.transformer.causal:
        raise UsageError(
            f"diffusers has no pipeline that streams, and {model.name!r} is block-causal.",
            expected="a bidirectional model with --against diffusers.",
        )
    layout = open_checkpoint(reference.checkpoint).layout
    if layout != "diffusers":
        raise UsageError(
            f"{reference.checkpoint} has the layout {layout!r}.",
            expected="a diffusers folder with --against diffusers.",
        )


def requests(
    model: ModelSpec,
    prompts: Sequence[str],
    *,
    workload: Workload | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Request, ...]:
    """A request for each prompt, each with the next seed: the model's defaults, or a workload.

    Prompts are in lower case, as diffusers makes them. Of a workload's ranges the sizes are
    played that plans are tuned for; its batch says whether there is guidance.

    Raises:
        UsageError: the workload wants guidance, and the model's defaults have none.
        RequestError: a size or a number of steps that the model cannot serve.
    """
    if workload is not None:
        options |= _sizes(model, workload)
    return tuple(
        for_model(model, {**options, "prompt": prompt, "seed": seed + index, "lowercase": True})
        for index, prompt in enumerate(prompts)
    )


def _sizes(model: ModelSpec, workload: Workload) -> dict[str, Any]:
    def tuned(span: Span) -> int:
        return span if isinstance(span, int) else span.opt

    batch = tuned(workload.batch)
    guided = geometry.batch_size(model.sampling.guidance_scale)
    if batch > guided:
        raise UsageError(
            f"The workload has a batch of {batch}, with guidance.",
            expected=f"a batch of 1: {model.name!r} has guidance_scale "
            f"{model.sampling.guidance_scale:g} by default.",
        )
    sizes: dict[str, Any] = {
        name: tuned(getattr(workload, name)) for name in ("num_frames", "height", "width")
    }
    return sizes | ({"guidance_scale": 1.0} if batch < guided else {})
