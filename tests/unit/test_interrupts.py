"""SIGINT and SIGTERM, raised at once or held back until a safe point."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from sana_rt import interrupts
from sana_rt.interrupts import TerminatedError

SIGNALS = {signal.SIGINT: (KeyboardInterrupt, 130), signal.SIGTERM: (TerminatedError, 143)}


def _send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_sigterm_raises_in_the_block_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError), interrupts.terminable():
        _send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def _work_and_check(number: int, reached: list[bool]) -> None:
    with interrupts.deferred() as held:
        _send(number)
        reached.append(held.pending)
        held.check()
        reached.append(False)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_held_signal_is_raised_at_the_check(number: int) -> None:
    error, code = SIGNALS[signal.Signals(number)]
    reached: list[bool] = []
    with pytest.raises(error) as raised:
        _work_and_check(number, reached)
    assert reached == [True]
    assert interrupts.exit_code(raised.value) == code


@pytest.mark.parametrize("number", SIGNALS)
def test_a_held_signal_is_raised_at_the_end(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SIGNALS[signal.Signals(number)][0]), interrupts.deferred():
        _send(number)
    assert signal.getsignal(number) == before


def _send_twice(reached: list[int]) -> None:
    with interrupts.deferred():
        _send(signal.SIGINT)
        reached.append(1)
        _send(signal.SIGINT)
        reached.append(2)


def test_a_second_signal_does_not_wait() -> None:
    reached: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        _send_twice(reached)
    assert reached == [1]


def test_threads_go_on_without_handlers() -> None:
    done = []

    def work() -> None:
        with interrupts.terminable(), interrupts.deferred() as held:
            done.append(held.pending)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [False]
