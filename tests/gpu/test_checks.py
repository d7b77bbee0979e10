"""The checks for a machine with a card can be called, and without one say so in a line."""

from __future__ import annotations

import inspect
import subprocess
from pathlib import Path

import pytest
from tests.gpu import checks


def test_every_check_takes_the_arguments_that_it_is_given() -> None:
    found = checks.all_checks(Path("folder"), Path("output"), Path("bundle"))
    for check in found.values():
        arguments = {name: value for name, value in check.items() if name != "function"}
        inspect.signature(getattr(checks, check["function"])).bind(**arguments)
    assert {check["function"] for check in found.values()} == {
        *("transformer", "driver", "provider", "blocks", "plans", "bench")
    }


@pytest.mark.skipif(
    subprocess.run(["bash", "-c", "ldconfig -p | grep libcuda.so"], check=False).returncode == 0,
    reason="there is a driver",
)
def test_without_a_card_a_check_says_so() -> None:
    figures = checks.run("driver")
    assert "NVIDIA's driver is not installed" in figures["failed"]
    assert figures["check_seconds"] > 0
