"""SIGINT and SIGTERM: both stop a command like Ctrl-C does, with the shell's exit codes."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

Handler = Callable[[int, FrameType | None], Any] | int | None

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM; whatever cleans up after Ctrl-C cleans up after it, too."""


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """What a shell reports for a process that the signal ended: 130 or 143."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, TerminatedError) else signal.SIGINT)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise :class:`TerminatedError` in the block."""
    with _handled({signal.SIGTERM: _raise}):
        yield


class Deferred:
    """Signals that came while they were held back."""

    def __init__(self) -> None:
        self._came: int | None = None

    @property
    def pending(self) -> bool:
        """Whether one came."""
        return self._came is not None

    def check(self) -> None:
        """Raise what a signal that came would have raised."""
        if self._came is not None:
            number, self._came = self._came, None
            _raise(number, None)


@contextlib.contextmanager
def deferred() -> Iterator[Deferred]:
    """Hold SIGINT and SIGTERM back until :meth:`Deferred.check`, or until the block ends.

    For code that must come to a safe point, or that calls foreign code in whose callbacks an
    exception would be lost. A second signal does not wait.
    """
    held = Deferred()

    def remember(number: int, frame: FrameType | None) -> None:
        if held.pending:
            _raise(number, frame)
        held._came = number

    with _handled(dict.fromkeys(_SIGNALS, remember)):
        yield held
    held.check()


def _raise(number: int, _: FrameType | None) -> None:
    if number == signal.SIGTERM:
        raise TerminatedError
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """Set handlers for the block; nothing in a thread, where Python delivers no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
