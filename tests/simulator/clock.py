"""Time for the backend's waits."""

from __future__ import annotations


class Clock:
    """Time that passes only while the backend sleeps, so that no machine is too slow for a test.

    A backend that sleeps for longer than any limit of the tests is stopped.
    """

    LONGEST = 60.0

    def __init__(self) -> None:
        self.now = 0.0

    def restart(self) -> None:
        """Let the time begin again, for a backend that has slept for nothing yet."""
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > self.LONGEST:
            raise TimeoutError("the backend waits for ever")
