"""Outputs never take the place of another file of the same command."""

from __future__ import annotations

from pathlib import Path

import pytest

from sana_rt.cli import paths
from sana_rt.errors import UsageError


def test_different_files_in_folders_that_are_or_will_be(tmp_path: Path) -> None:
    given = {"--prompts": tmp_path / "p.txt", "--config": None}
    paths.check({"--output": tmp_path / "new" / "folder" / "o.mp4", "--save-state": None}, given)


def test_an_output_is_no_input_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle")
    (tmp_path / "link.txt").symlink_to("p.txt")
    for other in ("p.txt", "link.txt", "x/../p.txt"):
        with pytest.raises(UsageError, match="--save-calibration and --prompts are the same file"):
            paths.check({"--save-calibration": tmp_path / other}, {"--prompts": tmp_path / "p.txt"})


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    both = {"--output": tmp_path / "x.mp4", "--save-state": tmp_path / "x.mp4"}
    with pytest.raises(UsageError, match="--save-state and --output are the same file"):
        paths.check(both, {})


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a folder"):
        paths.check({"--output": tmp_path}, {})
    with pytest.raises(UsageError, match="not a folder that can be written to"):
        paths.check({"--output": tmp_path / "file" / "o.mp4"}, {})
