"""Devices and workloads that come with the package, by name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec

from sana_rt.engines import profiles
from sana_rt.engines.profiles import Workload
from sana_rt.errors import UsageError
from sana_rt.model_spec import Frozen, Positive

_HERE: Final = Path(__file__).parent


class Source(Frozen, frozen=True):
    """The public document that a device's numbers are from."""

    document: str
    url: str


class Device(Frozen, frozen=True):
    """A card's published limits; ``peaks`` are dense FLOP/s by dtype of the GEMM's operands."""

    name: str
    compute_capability: str
    memory_bytes: int
    bandwidth: Positive  # bytes a second
    peaks: dict[str, Positive]
    source: Source


def device(name: str) -> Device:
    """The device called ``name``, such as ``rtx5090``."""
    return msgspec.convert(tomllib.loads(_find("devices", name).read_text()), Device)


def workload(name_or_path: str) -> Workload:
    """A workload of this package by name, or any by its path."""
    path = Path(name_or_path)
    return profiles.read(path if path.suffix == ".toml" else _find("workloads", name_or_path))


def names(folder: str) -> list[str]:
    """What there is in ``devices`` or ``workloads``."""
    return sorted(path.stem for path in (_HERE / folder).glob("*.toml"))


def _find(folder: str, name: str) -> Path:
    known = names(folder)
    if name not in known:
        raise UsageError(
            f"There is no {name!r} among the {folder}.", expected=f"one of {', '.join(known)}."
        )
    return _HERE / folder / f"{name}.toml"
