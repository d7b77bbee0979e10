"""What commands show: data on stdout, progress on stderr, both readable without colour."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sana_rt.cli.command import is_quiet
from sana_rt.cli.printable import printable

_PIPE_WIDTH = 160  # columns where no terminal says how many there are


def stdout() -> Console:
    """A console on stdout that takes text as it is; colour only on a terminal, never NO_COLOR."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """The same on stderr, for progress; it says nothing if the command was told to be quiet."""
    return Console(stderr=True, quiet=is_quiet(), highlight=False, markup=False, emoji=False)


def note(text: str) -> None:
    """Say something beside the data."""
    stderr().print(printable(text), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table without lines; columns whose name ends with ``>`` are flushed right."""
    shown = Table(box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        right = column.endswith(">")
        shown.add_column(column.rstrip(">"), justify="right" if right else "left")
    for row in rows:
        shown.add_row(*map(printable, row))
    console = stdout()
    console.print()
    console.print(Text(printable(title), "bold"))
    console.print(shown)


def json(value: object) -> None:
    """Print ``value`` as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def size(count: int) -> str:
    """Bytes as people read them: ``1.5 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
