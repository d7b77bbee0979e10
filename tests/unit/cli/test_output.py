"""Tables and sizes as commands print them."""

from __future__ import annotations

import json

import msgspec
import pytest

from sana_rt.cli import output
from sana_rt.cli.printable import printable

ESCAPE = "\x1b"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 40, "3.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert output.size(count) == text


def test_a_table_is_text_as_it_is_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    output.table("Title [b]", ("name", "size>"), [("[batch, 1]", "5"), (":smile:", "12")])
    shown = capsys.readouterr()
    assert [line.rstrip() for line in shown.out.splitlines()] == [
        "",
        "Title [b]",
        "name        size",
        "[batch, 1]     5",
        ":smile:       12",
    ]
    assert ESCAPE not in shown.out
    assert shown.err == ""


def test_what_files_say_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = f"{ESCAPE}[2J\r\x9b1A\u202egpj.exe\x00 提示 é"
    output.table(hostile, ("", ""), [(hostile, "x")])
    shown = capsys.readouterr().out
    assert not {ESCAPE, "\r", "\x9b", "\u202e", "\x00"} & set(shown)
    assert shown.count(r"\x1b[2J\r\x9b1A\u202egpj.exe\x00 提示 é") == 2
    assert printable("two\nlines") == "two\nlines"


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_no_color_is_respected(
    no_color: str | None, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    console = output.stdout()
    with console.capture() as captured:
        console.print("warm", style="red")
    assert (f"{ESCAPE}[31m" in captured.get()) == coloured


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    class Record(msgspec.Struct):
        name: str
        sizes: tuple[int, ...]

    output.json(Record("提示", (1, 2)))
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"name": "提示", "sizes": [1, 2]}
    assert "提示" in shown
