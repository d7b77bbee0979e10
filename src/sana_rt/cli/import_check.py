"""Whether packages can be imported, tried in a process that may crash or hang."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from sana_rt.progress import ReportProgress, silent

#: What an import may take: the slowest, on a slow disk, is torch's first.
SECONDS: Final = 120.0

#: Imports modules one after another and says on a line of its own what came of each. What the
#: modules print themselves goes nowhere.
_PROGRAM: Final = """\
import importlib, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    else:
        text = ""
    print(json.dumps(text), file=answers, flush=True)
os._exit(0)
"""


def broken(
    modules: Sequence[str], seconds: float = SECONDS, report: ReportProgress = silent
) -> dict[str, str]:
    """Why modules cannot be imported, in a line each; those that can are not in it.

    One that takes more than ``seconds``, or that takes the process with it, is broken, too.
    ``report`` is told what is imported.
    """
    found: dict[str, str] = {}
    left = list(modules)
    while left:
        for answer in _answers(tuple(left), seconds):
            name = left.pop(0)
            report(name, len(modules) - len(left), len(modules))
            if answer:
                found[name] = answer
    return found


def _answers(modules: Sequence[str], seconds: float) -> Iterator[str]:
    """What came of the modules that one process imports, "" of one that works.

    If that ends the process, the last answer says how; at least one module has an answer.
    """
    command = [sys.executable, "-P", "-c", _PROGRAM, *modules]
    with subprocess.Popen(  # noqa: S603 - this interpreter, and names of modules
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for _ in modules:
                line = _next_line(process, seconds)
                if line is None:
                    yield f"its import does not end in {seconds:g} s"
                    return
                if not line:
                    yield f"its import ends the process ({_status(process.wait())})"
                    return
                yield json.loads(line)
        finally:
            process.kill()


def _next_line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """What the process writes; nothing when it ended, None when it has been killed for waiting."""
    assert process.stdout is not None
    hung = threading.Event()

    def kill() -> None:
        hung.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    return None if hung.is_set() else line


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
