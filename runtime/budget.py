"""How much device memory a clip may take, and the plan that fits into it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from sana_rt.errors import DeviceMemoryError, UsageError
from sana_rt.runtime.memory import MemoryPlan, Phase, listed, loaded_bytes

_SIZE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>[KMGT]?i?B)", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def bytes_in(size: int | str) -> int:
    """Bytes in ``8GB`` (8 · 1000³), ``6.5GiB`` (6.5 · 1024³), or in a number of bytes.

    Raises :class:`UsageError` for anything else, and for less than one byte.
    """
    if isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        number = _bytes(float(found["number"]), found["unit"].lower()) if found else 0
    else:
        number = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if number < 1:
        raise UsageError(
            f"{size!r} is not a size of memory.",
            expected="a number with a unit, such as 8GB (8 · 1000³ bytes) or 7.5GiB.",
        )
    return number


def _bytes(number: float, unit: str) -> int:
    base = 1024 if "i" in unit else 1000
    return int(number * base ** _POWERS[unit.rstrip("b").rstrip("i")])


@dataclass(frozen=True)
class Budget:
    """Device memory that a clip may take: what is ``free``, what it can have back of what the
    session ``held`` before, and no more than the ``limit``. None says that it is not known.
    """

    free: int | None
    held: int = 0
    limit: int | None = None

    @property
    def bytes(self) -> int | None:
        """The smaller of what there is and of what is allowed."""
        there = None if self.free is None else self.free + self.held
        return min((each for each in (there, self.limit) if each is not None), default=None)

    def holds(self, plan: MemoryPlan) -> bool:
        """Whether ``plan`` fits."""
        return self.bytes is None or plan.total_bytes <= self.bytes

    def expects(self, plan: MemoryPlan) -> bool:
        """Whether ``plan`` fits with activations that nobody can tell exactly."""
        return self.bytes is None or plan.expected_bytes <= self.bytes

    def fit(self, plan: MemoryPlan, *, together: bool = False) -> MemoryPlan:
        """The plan that loads as much as fits at the same time, or the smallest if none fits.

        With ``together`` all phases stay loaded, whether that fits or not.
        """
        counts = range(1 if together else len(plan.phases))
        plans = [replace(plan, apart=count) for count in counts]
        return next((each for each in plans if self.expects(each)), plans[-1])

    def check(self, plan: MemoryPlan) -> None:
        """Raise :class:`DeviceMemoryError` unless ``plan`` fits."""
        if self.bytes is None or self.holds(plan):
            return
        largest = max(plan.groups, key=plan.bytes_of)
        limited = self.bytes == self.limit
        may = "may be used (--max-memory)" if limited else "are free"
        help_limited = f"allow {plan.total_bytes:,} bytes or more (--max-memory)" if limited else ""
        raise DeviceMemoryError(
            f"The clip needs {plan.total_bytes:,} bytes on {plan.device} for its "
            f"{listed(phase.name for phase in largest)}, of which {self.bytes:,} {may}:\n"
            + plan.table(),
            remedy="; ".join(filter(None, (help_limited, *_remedies(plan, largest)))) + ".",
        )


def _remedies(plan: MemoryPlan, largest: tuple[Phase, ...]) -> Iterator[str]:
    """What would make a group of phases smaller."""
    if len(largest) > 1:
        yield "do not keep the text encoder"
    if sum(map(loaded_bytes, largest)) > plan.bytes_of(largest) // 2:
        yield "play a variant with smaller weights (`sana-rt inspect` lists them)"
    else:
        yield "ask for a smaller or shorter clip"
    yield "free memory that other programs use"
