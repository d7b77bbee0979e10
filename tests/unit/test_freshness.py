"""What is current: who made it, and what differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

import sana_rt
from sana_rt import freshness


@dataclass(frozen=True)
class Key:
    sha256: str = field(metadata={"opaque": True})
    data_type: str
    options: dict[str, int]


def test_every_difference_is_told_in_words() -> None:
    old, new = Key("a", "", {"x": 1, "y": 2}), Key("b", "bf16", {"y": 3})
    assert list(freshness.differences(old, new)) == [
        "the sha256 changed",
        "data type was not recorded, is bf16",
        "options: x was 1, is None",
        "options: y was 2, is 3",
    ]
    assert list(freshness.differences(new, new)) == []


def test_who_makes_files_is_release_code_and_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(freshness, "_PACKAGE", tmp_path)
    for folder in ("export", "runtime"):
        (tmp_path / folder / "deeper").mkdir(parents=True)
    (tmp_path / "errors.py").write_text("1")
    (tmp_path / "export/deeper/graph.py").write_text("2")
    before = freshness.maker("export", ("msgspec",))
    assert before.startswith(f"sana-rt {sana_rt.__version__} (export ")
    assert ", msgspec " in before
    (tmp_path / "runtime/session.py").write_text("3")
    assert freshness.maker("export", ("msgspec",)) == before, "another stage's code"
    for path in ("errors.py", "export/deeper/graph.py"):
        (tmp_path / path).write_text("changed")
        after = freshness.maker("export", ("msgspec",))
        assert after != before
        before = after
