"""Importing loads what it needs and no more, whatever else is installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sana_rt.cli import COMMANDS

from .conftest import Environment

LOADED = """
import importlib, json, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""

MSGSPEC = {"msgspec", "typing_extensions"}  # the second where it is installed
# Third-party packages that each module may load.
ALLOWED: dict[str, set[str]] = {
    "sana_rt": set(),
    "sana_rt.errors": set(),
    "sana_rt.figures": set(),
    "sana_rt.files": set(),
    "sana_rt.bundle": MSGSPEC,
    "sana_rt.cli": {"click"},
    "sana_rt.engines.cards": MSGSPEC,
}
COMMAND = {"click", "rich", *MSGSPEC}


def _third_party(shown: str) -> set[str]:
    loaded: list[str] = json.loads(shown)
    return {name for name in loaded if name not in sys.stdlib_module_names} - {"sana_rt"}


@pytest.mark.parametrize("module", ALLOWED)
def test_without_extras(bare: Environment, module: str) -> None:
    assert _third_party(bare.run("python", "-c", LOADED, module).stdout) <= ALLOWED[module]


@pytest.mark.parametrize("module", [*ALLOWED, *(f"sana_rt.cli.{name}" for name in COMMANDS)])
def test_with_everything_installed(module: str) -> None:
    """Nothing heavy is imported because it happens to be there."""
    shown = subprocess.run(
        [sys.executable, "-c", LOADED, module], capture_output=True, text=True, check=True
    ).stdout
    assert _third_party(shown) <= ALLOWED.get(module, COMMAND)
