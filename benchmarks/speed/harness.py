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

from sana_rt.model_spec import Frozen

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
    sys.stdout.write(f"{resident_peak()}\n")


def resident_peak() -> int:
    """The most memory this process has had resident, in bytes (Linux).

    Not ``ru_maxrss``, in which a new process finds the peak of the one that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def conditions(packages: Sequence[str], threads: int) -> dict[str, str | int | float]:
    """What a figure depends on beside the code: processor, threads, versions, other load."""
    found: dict[str, str | int | float] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return found | {name: version(name) for name in packages}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
