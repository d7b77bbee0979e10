"""What a figure depends on beside the code: processor, threads, versions, other load."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from sana_rt import machine

Condition = str | int | float | None
#: Flat, so that two can be compared entry by entry.
Conditions = dict[str, Condition]


def conditions(packages: Iterable[str], threads: int) -> Conditions:
    """The conditions now; the version of a package that is not installed is None."""
    found: Conditions = {
        "processor": machine.processor(),
        "instruction_set": machine.instruction_set(),
        "cores": machine.usable_cpus(),
        "threads": threads,
        "load_average": machine.load_average(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return found | {name: _version(name) for name in packages}


def differences(
    one: Mapping[str, Condition], other: Mapping[str, Condition]
) -> dict[str, tuple[Condition, Condition]]:
    """What is not the same, by name, with both values; what is missing counts as None."""
    names = dict.fromkeys((*one, *other))
    return {
        name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
