"""Fuzzing fails where a target does not run, or finds something."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.native import fuzz

STATISTICS = "echo stat::number_of_executed_units: 7"
FIND = "for each; do case $each in -artifact_prefix=*) touch ${each#*=}crash;; esac; done"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (STATISTICS, 0),
        ("exit 0", 1),
        ("exit 3", 1),
        (f"{STATISTICS}; exit 3", 1),
        (f"{STATISTICS}; {FIND}; exit 77", 1),
    ],
)
def test_a_target_that_fails_is_no_success(script: str, code: int, tmp_path: Path) -> None:
    program = tmp_path / "tests/fuzz_array"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    options = {"--target": "array", "--build": tmp_path, "--output": tmp_path, "--seconds": 1}
    arguments = [str(each) for option in options.items() for each in option]
    assert CliRunner().invoke(fuzz.main, arguments).exit_code == code


def test_findings_of_the_run_before_are_cleared(tmp_path: Path) -> None:
    old = tmp_path / "array/findings/crash"
    old.parent.mkdir(parents=True)
    old.touch()
    test_a_target_that_fails_is_no_success(STATISTICS, 0, tmp_path)
    assert not old.exists()
