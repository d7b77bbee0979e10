"""Imports are tried where they do no harm."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sana_rt.cli import import_check

MODULES = {
    "coherent": "x = 1",
    "talkative": "print('not an answer', flush=True)",
    "raises": "raise RuntimeError('no driver\\nsecond line')",
    "lacks": "import a_package_that_nobody_has",
    "exits": "import sys; sys.exit('leaving')",
    "leaves": "import os; os._exit(3)",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "import time; time.sleep(60)",
}


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_every_way_to_be_broken_is_a_line() -> None:
    said: list[tuple[str, int, int]] = []
    names = (*MODULES, "json")
    started = time.monotonic()
    found = import_check.broken(names, 2.0, lambda *state: said.append(state))
    assert time.monotonic() - started < 30
    assert found == {
        "raises": "RuntimeError: no driver",
        "lacks": "ModuleNotFoundError: No module named 'a_package_that_nobody_has'",
        "exits": "SystemExit: leaving",
        "leaves": "its import ends the process (exit code 3)",
        "crashes": "its import ends the process (signal 11)",
        "hangs": "its import does not end in 2 s",
    }
    assert said == [(name, index + 1, 9) for index, name in enumerate(names)]


def test_what_lies_where_the_command_runs_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "coherent.py").write_text("raise RuntimeError('another')")
    monkeypatch.chdir(folder)
    assert import_check.broken(["coherent"]) == {}


def test_nothing_is_imported_for_nothing() -> None:
    assert import_check.broken([]) == {}
