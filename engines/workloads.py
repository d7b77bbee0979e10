"""Workloads: the sizes that plans are built for, in the words of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sana_rt import documents, geometry
from sana_rt.errors import UsageError
from sana_rt.manifest import DimRange
from sana_rt.model_spec import Count, Frozen, ModelSpec

Span = Count | DimRange

_WORKLOADS: Final = Path(__file__).with_name("workloads")


class Workload(Frozen, frozen=True):
    """What plans are built for: each size one number, or ``{min, opt, max}``.

    ``batch`` counts the samples of a forward pass (2 with classifier-free guidance),
    ``num_frames``, ``height`` and ``width`` are those of the video, ``length`` is that of a
    tokenized prompt.
    """

    num_frames: Span
    height: Span
    width: Span
    batch: Span = 2
    length: Span = DimRange(1, 512, 1024)
    description: str = ""


def for_model(model: ModelSpec) -> Workload:
    """The workload of the model's default request; of a block-causal model, any length."""
    sampling = model.sampling
    frames: Span = sampling.num_frames
    if model.transformer.causal:
        frames = DimRange(1, sampling.num_frames, geometry.longest_clip(model))
    return Workload(
        num_frames=frames,
        height=sampling.height,
        width=sampling.width,
        batch=geometry.batch_size(sampling.guidance_scale),
        description=f"the defaults of {model.name}",
    )


def load(name_or_path: str) -> Workload:
    """A workload of this package by name, or any by the path of its ``.toml`` file.

    Raises:
        UsageError: no workload of that name, or a file that is not one.
    """
    path = Path(name_or_path)
    return read(path if path.suffix == ".toml" else _packaged(name_or_path))


def read(path: Path) -> Workload:
    """A workload from a TOML file; unknown keys are refused."""
    return documents.read(
        path,
        documents.toml,
        Workload,
        lambda reason: UsageError(
            f"{path} is not a workload: {reason}.",
            expected="TOML with num_frames, height, width and, if they differ from the default, "
            "batch and length: each a number or {min, opt, max}.",
        ),
    )


def names() -> list[str]:
    """The workloads of this package."""
    return sorted(path.stem for path in _WORKLOADS.glob("*.toml"))


def _packaged(name: str) -> Path:
    if name not in names():
        raise UsageError(
            f"There is no workload {name!r}.",
            expected=f"one of {', '.join(names())}, or the path of a .toml file.",
        )
    return _WORKLOADS / f"{name}.toml"
