"""Tests in a process of their own, which loads the simulated driver in place of a real one.

A process finds ``libcuda.so.1`` once and keeps it, and other tests are about machines without a
driver. So a file of tests runs in a child process that has the library and the stand-in packages
on its paths; the reports come back, and pytest shows them as if they were its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import pytest

from tests.simulator import library

PIPES: Final = "SIMULATED_DEVICE_PIPES"
PACKAGES: Final = Path(__file__).parent / "packages"
PATHS: Final = ("LD_LIBRARY_PATH", "PYTHONPATH")
#: What the paths were before the child's were put in front.
ORIGINAL: Final = "SIMULATED_DEVICE_ORIGINAL_"
_PATIENCE: Final = 600.0  # seconds that a test may take


def is_child() -> bool:
    """Whether this process has the simulated driver."""
    return PIPES in os.environ


def real_environment() -> dict[str, str]:
    """The environment of a process without simulated driver and stand-ins."""
    real = {name: value for name, value in os.environ.items() if not name.startswith("SIMULATED_")}
    for name in PATHS:
        real[name] = os.environ.get(ORIGINAL + name, os.environ.get(name, ""))
    return real


class Child:
    """The process that runs the tests of one file."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        paths = {
            "LD_LIBRARY_PATH": [library.folder(config)],
            "PYTHONPATH": [PACKAGES, config.rootpath],
        }
        commands, ours = os.pipe()
        theirs, results = os.pipe()
        self._commands: IO[str] = os.fdopen(ours, "w")
        self._results: IO[str] = os.fdopen(theirs, "r")
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-m", "pytest", "-p", "tests.simulator.child", str(file)]
        self._process = subprocess.Popen(
            command,
            cwd=config.rootpath,
            env=_environment(paths, f"{commands},{results}"),
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            pass_fds=(commands, results),
        )
        os.close(commands)
        os.close(results)

    def run(self, item: str, following: str | None) -> Iterator[dict[str, Any]]:
        """The reports of a test, serialized.

        Raises:
            ChildProcessError: the process has ended, or did not answer.
        """
        try:
            print(json.dumps([item, following]), file=self._commands, flush=True)
        except OSError:
            raise ChildProcessError(self._last_words()) from None
        while True:
            ready, _, _ = select.select([self._results], [], [], _PATIENCE)
            line = self._results.readline() if ready else ""
            if not line:
                raise ChildProcessError(self._last_words())
            report = json.loads(line)
            if report is None:
                return
            yield report

    def close(self) -> None:
        """Let the process end."""
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()
        self._process.wait(_PATIENCE)
        self._results.close()
        self._said.close()

    def _last_words(self) -> str:
        self._process.kill()
        code = self._process.wait()
        self._said.seek(0)
        return f"the process of the simulated device ended ({code}):\n{self._said.read()}"


def _environment(paths: Mapping[str, list[Path]], pipes: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for name, ahead in paths.items():
        before = os.environ.get(name, "")
        ours[ORIGINAL + name] = before
        ours[name] = os.pathsep.join(filter(None, [*map(str, ahead), before]))
    return ours | {PIPES: pipes}


# --- The plugin of the child ---


class Server:
    """Runs the tests that it is asked for, and answers with their reports."""

    def __init__(self, config: pytest.Config) -> None:
        commands, results = map(int, os.environ[PIPES].split(","))
        self._config = config
        self._commands: IO[str] = os.fdopen(commands)
        self._results: IO[str] = os.fdopen(results, "w")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for line in self._commands:
            name, following = json.loads(line)
            item, next_item = items[name], items.get(following)
            self._config.hook.pytest_runtest_protocol(item=item, nextitem=next_item)
            self._answer(None)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        serialize = self._config.hook.pytest_report_to_serializable
        self._answer(serialize(config=self._config, report=report))

    def _answer(self, message: object) -> None:
        print(json.dumps(message), file=self._results, flush=True)


def pytest_configure(config: pytest.Config) -> None:
    if is_child():
        config.pluginmanager.register(Server(config), "simulated-device")
