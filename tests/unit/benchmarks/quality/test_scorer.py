"""Scorers are found by name, and what they return is checked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from sana_rt.benchmarks.quality import scorer as scorers
from sana_rt.benchmarks.quality.scorer import Score, Scorer
from sana_rt.errors import MissingDependencyError, SanaRTError, UsageError
from sana_rt.runtime.session import Session

SESSION = cast("Session", object())
RIGHT = {"colour": {"fraction": 0.5, "low": 0.1, "high": 0.9, "n": 2}}
MODULE = """
from own_scores_words import NAME

def sharp(session, prompts, progress):
    progress(prompts, prompts)
    return {NAME: {"fraction": 1.0, "low": 0.3, "high": 1.0, "n": prompts}}

LIMIT = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with modules that nothing else can import."""
    (tmp_path / "own_scores.py").write_text(MODULE)
    (tmp_path / "own_scores_words.py").write_text("NAME = 'sharp'")
    (tmp_path / "own_scores_torn.py").write_text("import no_such_package_42")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_a_function_beside_the_user_is_found(here: Path) -> None:
    done: list[tuple[int, int]] = []
    scorer = scorers.load("own_scores:sharp")
    assert scorers.name(scorer) == "own_scores:sharp"
    scores = scorers.score(scorer, SESSION, 7, lambda *counts: done.append(counts))
    assert scores == {"sharp": Score(1.0, 0.3, 1.0, 7)}
    assert done == [(7, 7)]


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("own_scores", UsageError, "not the name of a function"),
        ("own_scores:", UsageError, "not the name of a function"),
        (":sharp", UsageError, "not the name of a function"),
        (".own_scores:sharp", UsageError, "not the name of a function"),
        ("own_scores.py:sharp", UsageError, "no module 'own_scores.py'"),
        ("no_such_module_42:sharp", UsageError, "no module 'no_such_module_42'"),
        ("no_such_module_42.inner:sharp", UsageError, "no module 'no_such_module_42.inner'"),
        ("own_scores:blunt", UsageError, "no function 'blunt'"),
        ("own_scores:LIMIT", UsageError, "no function 'LIMIT'"),
        ("own_scores_torn:sharp", MissingDependencyError, "needs 'no_such_package_42'"),
    ],
)
def test_a_name_of_nothing_is_refused(
    here: Path, name: str, error: type[SanaRTError], said: str
) -> None:
    with pytest.raises(error, match=said):
        scorers.load(name)


def returning(value: object) -> Scorer:
    def scorer(session: Session, prompts: int | None, progress: Callable[[int, int], None]) -> dict:
        return value  # type: ignore[return-value]

    return scorer


def test_scores_are_taken_as_structs_and_as_plain_values() -> None:
    score = Score(0.5, 0.1, 0.9, 2)
    for value in (RIGHT, {"colour": score}):
        found = scorers.score(returning(value), SESSION, None, lambda *_: None)
        assert found == {"colour": score}


@pytest.mark.parametrize(
    "value",
    [
        None,
        0.5,
        {},
        {"colour": 0.5},
        {"colour": RIGHT["colour"] | {"fraction": 50.0}},
        {"colour": RIGHT["colour"] | {"low": float("nan")}},
        {"colour": RIGHT["colour"] | {"n": 0}},
        {"colour": {"fraction": 0.5, "n": 2}},
        {"colour": object()},
        {3: RIGHT["colour"]},
    ],
)
def test_what_is_no_scores_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="gave no scores"):
        scorers.score(returning(value), SESSION, None, lambda *_: None)
