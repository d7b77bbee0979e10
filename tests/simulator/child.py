"""Tests in a process of their own, which loads the simulated driver in place of a real one.

A process finds ``libcuda.so.1`` once and keeps it, and other tests are about machines without a
driver. So a file of tests runs in a child process that has the library and the stand-in packages
on its paths; the reports come back, and pytest shows them as if they were its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import pytest
from tests.simulator import extent, library

#: The variable with the file descriptor to talk to the parent through.
PIPE: Final = "SIMULATED_DEVICE_PIPE"
PACKAGES: Final = Path(__file__).parent / "packages"
PATHS: Final = ("LD_LIBRARY_PATH", "PYTHONPATH")
#: What the paths were before the child's were put in front.
ORIGINAL: Final = "SIMULATED_DEVICE_ORIGINAL_"
_PATIENCE: Final = 3600.0 if extent.ALL else 600.0  # seconds that a test may take


def is_child() -> bool:
    """Whether this process has the simulated driver."""
    return PIPE in os.environ


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
        command = [sys.executable, "-m", "pytest", "-p", "tests.simulator.child", str(file)]
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                command,
                cwd=config.rootpath,
                env=_environment(paths, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
            )

    def run(self, item: str, following: str | None) -> Iterator[dict[str, Any]]:
        """The reports of a test, serialized.

        Raises:
            ChildProcessError: the process has ended, or did not answer.
        """
        try:
            self._pipe.send((item, following))
            while self._pipe.poll(_PATIENCE):
                report = self._pipe.recv()
                if report is None:
                    return
                yield report
        except (EOFError, OSError):
            pass
        raise ChildProcessError(self._last_words())

    def close(self) -> None:
        """Let the process end."""
        self._pipe.close()
        self._process.wait(_PATIENCE)
        self._said.close()

    def _last_words(self) -> str:
        self._process.kill()
        code = self._process.wait()
        self._said.seek(0)
        return f"the process of the simulated device ended ({code}):\n{self._said.read()}"


def _environment(paths: Mapping[str, list[Path]], pipe: int) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for name, ahead in paths.items():
        before = os.environ.get(name, "")
        ours[ORIGINAL + name] = before
        ours[name] = os.pathsep.join(filter(None, [*map(str, ahead), before]))
    return ours | {PIPE: str(pipe)}


# --- The plugin of the child ---


class Server:
    """Runs the tests that it is asked for, and answers with their reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._pipe = Connection(int(os.environ[PIPE]))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        with contextlib.suppress(EOFError):
            while True:
                name, following = self._pipe.recv()
                item, next_item = items[name], items.get(following)
                self._config.hook.pytest_runtest_protocol(item=item, nextitem=next_item)
                self._pipe.send(None)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        serialize = self._config.hook.pytest_report_to_serializable
        self._pipe.send(serialize(config=self._config, report=report))


def pytest_configure(config: pytest.Config) -> None:
    if is_child():
        config.pluginmanager.register(Server(config), "simulated-device")
