"""The command line: one module a command, imported when the command runs."""

from __future__ import annotations


def main() -> None:
    """Run the ``sana-rt`` command."""
    raise SystemExit("no commands yet")
