"""Tests in a process of their own: what comes back from it, and what if nothing does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.simulator.child import PACKAGES, PATHS, Child, real_environment

TESTS = """
import os

def test_passes():
    assert "simulator" in os.environ["PYTHONPATH"]

def test_fails():
    assert 1 == 2, "one is not two"

def test_dies():
    os.kill(os.getpid(), 9)
"""


@contextmanager
def child(config: pytest.Config, folder: Path) -> Iterator[Child]:
    file = folder / "test_three.py"
    file.write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")  # the root of the names of its tests
    process = Child(config, file)
    try:
        yield process
    finally:
        process.close()


def outcomes(process: Child, test: str, following: str | None) -> dict[str, str]:
    name = f"test_three.py::{test}"
    then = following and f"test_three.py::{following}"
    return {report["when"]: report["outcome"] for report in process.run(name, then)}


def test_reports_come_back(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    with child(pytestconfig, tmp_path) as process:
        passed = outcomes(process, "test_passes", "test_fails")
        failed = outcomes(process, "test_fails", None)
    assert passed == {"setup": "passed", "call": "passed", "teardown": "passed"}
    assert failed == {"setup": "passed", "call": "failed", "teardown": "passed"}


def test_a_process_that_dies_is_told(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    with child(pytestconfig, tmp_path) as process:
        with pytest.raises(ChildProcessError, match=r"ended \(-9\)"):
            outcomes(process, "test_dies", "test_passes")
        with pytest.raises(ChildProcessError, match="ended"):
            outcomes(process, "test_passes", None)


def test_without_a_compiler_the_tests_say_what_to_install(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.simulator import library

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(pytest.skip.Exception, match=r"the Debian package g\+\+"):
        library.folder(pytestconfig)


def test_other_processes_can_have_the_real_environment() -> None:
    assert str(PACKAGES) in os.environ["PYTHONPATH"]
    real = real_environment()
    for name in PATHS:
        assert "simulat" not in real[name].replace(str(Path.cwd()), "")
    assert not [name for name in real if name.startswith("SIMULATED_")]
