"""A function called in a process of its own, for times and memory that are its alone.

The process answers on a pipe, a JSON document a line: how far it is, then its result or its
error. Whatever libraries print goes to its stderr, which is shown if it fails.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

import msgspec

from sana_rt import errors, machine
from sana_rt.errors import BenchmarkError, SanaRTError, UsageError

#: Called with how many parts of the work are done, and how many there are.
Report = Callable[[int, int], None]

_CHILD: Final = "from sana_rt.benchmarks.processes import child; child()"
_SHOWN: Final = 400  # characters of what a failed process printed last


@dataclass(frozen=True)
class Outcome:
    """What a function returned, as JSON has it, and the most memory of its process in bytes."""

    value: Any
    peak_bytes: int | None


@dataclass(frozen=True)
class Call:
    """A function ``module:function`` and its arguments, which must be what JSON can say.

    With ``reports`` it is also given ``report``. After ``limit`` seconds it is killed.
    """

    function: str
    arguments: Mapping[str, Any]
    threads: int
    reports: bool = False
    limit: float | None = None

    def run(self, report: Report = lambda _done, _total: None) -> Outcome:
        """Call it in a new process, and wait.

        Raises:
            SanaRTError: what the function raised, as it raised it.
            BenchmarkError: the process failed otherwise, or took longer than the limit.
        """
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        arguments = json.dumps(dict(self.arguments))
        command = [sys.executable, "-c", _CHILD, self.function, arguments, str(int(self.reports))]
        with (
            tempfile.TemporaryFile() as printed,
            subprocess.Popen(  # noqa: S603 - this interpreter, with arguments of ours
                command, stdout=subprocess.PIPE, stderr=printed, env=environment
            ) as process,
        ):
            assert process.stdout is not None
            try:
                answer = self._listen(process, process.stdout, report)
                code = process.wait()
            except BaseException:
                process.kill()  # nobody waits for it any more
                raise
            if answer is None:
                raise self._failed(code, printed)
        return _outcome(answer)

    def _listen(
        self, process: subprocess.Popen[bytes], pipe: IO[bytes], report: Report
    ) -> dict[str, Any] | None:
        """The last answer, or None if the process ended without one."""
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.limit or threading.TIMEOUT_MAX, end)
        timer.start()
        try:
            for answer in _answers(pipe):
                if "done" not in answer:
                    return answer
                report(answer["done"], answer["total"])
        finally:
            timer.cancel()
        if late.is_set():
            raise BenchmarkError(
                f"{self.function} took longer than its limit of {self.limit:g} s.",
                remedy="raise the limit, or leave this side out.",
            )
        return None

    def _failed(self, code: int, printed: IO[bytes]) -> BenchmarkError:
        printed.seek(max(0, printed.seek(0, io.SEEK_END) - _SHOWN))
        said = printed.read().decode(errors="replace").strip()
        return BenchmarkError(
            f"The process of {self.function} ended with exit code {code}. It printed last:\n{said}",
            remedy="free memory, for the want of which the system ends processes."
            if code == -signal.SIGKILL
            else "",
        )


def known(peak_bytes: int | None) -> int:
    """``peak_bytes``; raises :class:`UsageError` where the system does not tell it."""
    if peak_bytes is None:
        raise UsageError("The memory of a process is not known here.", expected="Linux.")
    return peak_bytes


def child() -> None:
    """The other end of :meth:`Call.run`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    arguments = json.loads(sys.argv[2])

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    if sys.argv[3] == "1":
        arguments["report"] = lambda done, total: answer(done=done, total=total)
    try:
        value = getattr(importlib.import_module(module), name)(**arguments)
    except SanaRTError as error:
        said = {"happened": error.happened, "expected": error.expected, "remedy": error.remedy}
        answer(error=type(error).__name__, **said)
    else:
        answer(value=msgspec.to_builtins(value), peak_bytes=machine.peak_resident_bytes())


def _answers(pipe: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in pipe:
        yield json.loads(line)


def _outcome(answer: Mapping[str, Any]) -> Outcome:
    if "error" not in answer:
        return Outcome(answer["value"], answer["peak_bytes"])
    kind: type[SanaRTError] = getattr(errors, answer["error"])
    raise kind(answer["happened"], expected=answer["expected"], remedy=answer["remedy"])
