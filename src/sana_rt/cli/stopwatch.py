"""Where the time of a command goes."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds by stage, each from the end of the one before."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """What was done since the last call belongs to ``stage``."""
        now = time.monotonic()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def of(self, stage: str) -> float:
        """The seconds of a stage until now."""
        return self._seconds.get(stage, 0.0)

    @property
    def total(self) -> float:
        """All seconds until now."""
        return time.monotonic() - self._started

    def report(self) -> dict[str, float]:
        """The seconds of every stage, and of all, to the millisecond."""
        return {name: round(value, 3) for name, value in self._all().items()}

    def _all(self) -> dict[str, float]:
        return self._seconds | {"total": self.total}
