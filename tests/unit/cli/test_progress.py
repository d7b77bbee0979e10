"""Progress off a terminal: lines of text, not too many."""

from __future__ import annotations

import io
import logging
import time
import warnings

import pytest
from rich.console import Console

from sana_rt.cli import progress
from sana_rt.cli.playing import Reporter


def test_lines_tell_beginnings_ends_and_time_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    text = io.StringIO()
    report = progress.Lines(Console(file=text, width=80))
    for done in range(100):
        now[0] += 1
        report("Denoising", done, 100)
    report("Denoising", 100, 100)
    report("Denoising", 100, 100)
    report("Decoding", 0, 3)
    lines = text.getvalue().splitlines()
    assert lines[0] == "Denoising: 0 of 100"
    assert lines[1] == "Denoising: 10 of 100"
    assert lines[-2:] == ["Denoising: 100 of 100", "Decoding: 0 of 3"]
    assert len(lines) == 10 + 2


def test_a_log_gets_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.counted("ab", "Reading files", 2)) == ["a", "b"]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[:2] == ["Reading files ...", "Reading files: 0 of 2"]
    assert "\x1b" not in shown.err


def test_what_the_package_logs_and_warns_of_is_shown_as_a_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("sana_rt")
    monkeypatch.setattr(logger, "disabled", False)  # as import-linter leaves all that it finds
    reporter = Reporter()
    with reporter.shown():
        logger.info("Compiled kernels come from %s.", "here")
        warnings.warn(UserWarning("This is slow."), stacklevel=1)
    logger.info("Not shown any more.")
    assert capsys.readouterr().err.splitlines() == [
        "Note: Compiled kernels come from here.",
        "Note: This is slow.",
    ]
    assert logger.handlers == []
