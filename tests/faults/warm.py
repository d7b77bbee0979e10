"""The client of :mod:`tests.faults.server`: commands with a fault, one at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.faults.preload import Fault

ROOT: Final = Path(__file__).parents[2]
#: Far above what a command takes, to fail rather than hang.
SECONDS: Final = 300


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (negative: a signal, None: it hung), and what it said.

    ``points`` is how many there were; ``spoilt`` is the one that was spoilt, if it was reached.
    """

    exit_code: int | None
    points: int
    spoilt: str | None
    output: str


class Warm:
    """Runs commands in forks of one process, so that none waits for imports."""

    def __init__(self, library: Path) -> None:
        self._library = library

    def __enter__(self) -> Self:
        """Start the process."""
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | single | {"LD_PRELOAD": str(self._library), "PYTHONPATH": path},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        """End it."""
        self._process.communicate()

    def trace(self, checkpoint: Path) -> None:
        """Trace the graphs of a checkpoint once, for all exports of it."""
        self._ask({"warm": str(checkpoint)})

    def run(
        self, arguments: list[str], folder: Path, fault: Fault, log: Path | None = None
    ) -> Outcome:
        """Run a command in ``folder``, below which file operations count, and list them."""
        output = folder.with_name(f"{folder.name}.output")
        fields = vars(fault) | {"kind": fault.kind.name}
        answer = self._ask(
            {
                "arguments": arguments,
                "folder": str(folder),
                "fault": fields,
                "output": str(output),
                "log": str(log) if log else None,
                "seconds": SECONDS,
            }
        )
        return Outcome(**answer, output=output.read_text(errors="replace"))

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(job)}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that runs commands is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer
