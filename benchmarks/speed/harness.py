"""Two ways to do the same, measured side by side: seconds, their ratio, and peak memory.

The sides take turns within one process, so that what else the machine does meets both, and a
ratio is one of neighbours in time. Memory is that of a process of its own for each side.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from sana_rt import machine
from sana_rt.errors import UsageError
from sana_rt.files import write_bytes
from sana_rt.model_spec import Frozen

Conditions = dict[str, str | int | float | None]

_CHILD: Final = "from sana_rt.benchmarks.speed.harness import child; child()"


class Spread(Frozen, frozen=True):
    """The middle half of some measurements, and their number."""

    median: float
    lower_quartile: float
    upper_quartile: float
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The quartiles of at least two values."""
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(median, lower, upper, len(values))


class Comparison(Frozen, frozen=True):
    """Seconds of the two sides, and how many times as long the reference takes."""

    ours: Spread
    reference: Spread
    ratio: Spread


def interleave(
    ours: Callable[[], Sequence[float]],
    reference: Callable[[], Sequence[float]],
    rounds: int,
) -> Comparison:
    """Let the sides take turns ``rounds`` times, after one turn each that does not count.

    A turn returns the seconds of each of its steps. The ratio is taken round by round, of the
    turns' medians; who begins alternates.
    """
    sides = (ours, reference)
    for side in sides:
        side()
    seconds: tuple[list[float], list[float]] = ([], [])
    ratios = []
    for index in range(rounds):
        turns: dict[int, Sequence[float]] = {}
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            turns[which] = sides[which]()
            seconds[which].extend(turns[which])
        ratios.append(statistics.median(turns[1]) / statistics.median(turns[0]))
    return Comparison(Spread.of(seconds[0]), Spread.of(seconds[1]), Spread.of(ratios))


def peak_bytes(function: str, arguments: Mapping[str, Any], threads: int) -> int:
    """The most memory that a new process has resident while it calls ``module:function``.

    ``arguments`` must be what JSON can say. Raises :class:`subprocess.CalledProcessError`.
    """
    command = [sys.executable, "-c", _CHILD, function, json.dumps(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(  # noqa: S603 - this interpreter, with arguments of ours
        command, capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout.split()[-1])


def child() -> None:
    """The other end of :func:`peak_bytes`."""
    module, _, name = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    sys.stdout.write(f"{told(machine.peak_resident_bytes())}\n")


def told(memory: int | None) -> int:
    """``memory`` in bytes; raises :class:`UsageError` where the system does not tell it."""
    if memory is None:
        raise UsageError("The memory of a process is not known here.", expected="Linux.")
    return memory


def conditions(packages: Sequence[str], threads: int) -> Conditions:
    """What a figure depends on beside the code: processor, threads, versions, other load."""
    found: Conditions = {
        "processor": machine.processor(),
        "instruction_set": machine.instruction_set(),
        "cores": machine.usable_cpus(),
        "threads": threads,
        "load_average": machine.load_average(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return found | {name: version(name) for name in packages}


def write(report: Frozen, path: Path) -> None:
    """Write a report as indented JSON."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
