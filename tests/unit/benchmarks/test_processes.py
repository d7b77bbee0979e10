"""A process answers with its result or its error, tells how far it is, and ends when it must."""

from __future__ import annotations

import signal
import sys
import time

import numpy as np
import pytest

from sana_rt import machine
from sana_rt.benchmarks import processes
from sana_rt.benchmarks.processes import Call, Report
from sana_rt.errors import BenchmarkError, RequestError, UsageError

MEBIBYTE = 1 << 20
HERE = "tests.unit.benchmarks.test_processes"


def counted(report: Report, to: int) -> list[int]:
    """Called in another process: tells how far it is, and prints what is no answer."""
    for done in range(to):
        sys.stdout.write("a library prints this\n")
        report(done, to)
    return list(range(to))


def holding(size: int) -> None:
    np.ones(size, np.uint8)


def asleep(seconds: float) -> None:
    time.sleep(seconds)


def killed() -> None:
    signal.raise_signal(signal.SIGKILL)


def divided(by: int) -> float:
    return 1 / by


def refused() -> None:
    raise RequestError("Four frames.", expected="five.", remedy="ask for five.")


def call(function: str, **arguments: object) -> Call:
    return Call(function, arguments, threads=1)


def test_memory_is_that_of_the_process_alone() -> None:
    ballast = np.ones(300 * MEBIBYTE, np.uint8)  # of this process, which is larger
    assert processes.known(machine.peak_resident_bytes()) > ballast.nbytes
    small, large = (
        processes.known(call(f"{HERE}:holding", size=size).run().peak_bytes)
        for size in (1, 200 * MEBIBYTE)
    )
    assert small < 200 * MEBIBYTE
    assert large - small == pytest.approx(200 * MEBIBYTE, rel=0.1)


def test_it_tells_how_far_it_is_whatever_is_printed() -> None:
    told: list[tuple[int, int]] = []
    counting = Call(f"{HERE}:counted", {"to": 3}, threads=1, reports=True)
    outcome = counting.run(lambda done, total: told.append((done, total)))
    assert outcome.value == [0, 1, 2]
    assert told == [(0, 3), (1, 3), (2, 3)]


def test_its_error_is_raised_here_as_it_was_there() -> None:
    with pytest.raises(RequestError, match="Four frames") as caught:
        call(f"{HERE}:refused").run()
    assert (caught.value.expected, caught.value.remedy) == ("five.", "ask for five.")


def test_a_process_that_fails_otherwise_is_an_error_with_what_it_printed() -> None:
    with pytest.raises(BenchmarkError, match=r"exit code 1\b[\s\S]*ZeroDivisionError") as caught:
        call(f"{HERE}:divided", by=0).run()
    assert f"{HERE}:divided" in caught.value.happened


def test_a_process_that_the_system_ends_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="exit code -9"):
        call(f"{HERE}:killed").run()


def test_a_process_that_takes_too_long_is_ended() -> None:
    begin = time.monotonic()
    with pytest.raises(BenchmarkError, match=r"limit of 0\.5 s"):
        Call(f"{HERE}:asleep", {"seconds": 60}, threads=1, limit=0.5).run()
    assert time.monotonic() - begin < 30


def test_memory_that_the_system_does_not_tell_is_no_figure() -> None:
    with pytest.raises(UsageError, match="not known here"):
        processes.known(None)
