"""Scorers: functions of the user that say how good the clips are which a session plays."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, Protocol, cast

import msgspec
from msgspec import Meta

from sana_rt.errors import MissingDependencyError, UsageError
from sana_rt.model_spec import Frozen
from sana_rt.runtime.session import Session

_EXPECTED: Final = "MODULE:FUNCTION, such as examples.shapes.judge:followed."

Fraction = Annotated[float, Meta(ge=0, le=1)]


class Score(Frozen, frozen=True):
    """The share of ``n`` clips that are right in one respect, with its 95 % interval."""

    fraction: Fraction
    low: Fraction
    high: Fraction
    n: Annotated[int, Meta(ge=1)]


Scores = Annotated[dict[str, Score], Meta(min_length=1)]


class Scorer(Protocol):
    """Plays prompts of its own on an opened session and scores the clips.

    ``prompts`` is how many, None all that it has; ``progress`` is called with the number of
    clips that are done and of all. The names of the scores are the same for every session.
    """

    def __call__(
        self, session: Session, prompts: int | None, progress: Callable[[int, int], None], /
    ) -> Mapping[str, Score]:
        """Scores by name."""


def load(name: str) -> Scorer:
    """The function called ``MODULE:FUNCTION``, from the current directory or ``sys.path``.

    Raises:
        UsageError: not of that form, no such module, or no such function in it.
        MissingDependencyError: the module imports a package that is not installed.
    """
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise UsageError(f"The scorer {name!r} is not the name of a function.", expected=_EXPECTED)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise _missing(module, str(error.name)) from error
    if not callable(found):
        raise UsageError(f"{module} has no function {function!r}.", expected=_EXPECTED)
    return cast("Scorer", found)


def name(scorer: Scorer) -> str:
    """``MODULE:FUNCTION``, of a callable object its class."""
    function = getattr(scorer, "__qualname__", type(scorer).__qualname__)
    return f"{scorer.__module__}:{function}"


def _missing(module: str, name: str) -> UsageError | MissingDependencyError:
    if f"{module}.".startswith(f"{name}."):
        return UsageError(
            f"There is no module {module!r}.",
            expected=_EXPECTED,
            remedy="start sana-rt in the folder that holds it, or name that in PYTHONPATH.",
        )
    return MissingDependencyError(
        f"The scorer's module {module!r} needs {name!r}, which is not installed.",
        remedy="install it beside sana-rt.",
    )


def score(
    scorer: Scorer, session: Session, prompts: int | None, progress: Callable[[int, int], None]
) -> dict[str, Score]:
    """What ``scorer`` says of ``session``; raises :class:`UsageError` if it is no scores."""
    found = scorer(session, prompts, progress)
    try:
        return msgspec.convert(msgspec.to_builtins(found), Scores)
    except (msgspec.ValidationError, TypeError) as error:
        raise UsageError(
            f"The scorer gave no scores: {error}.",
            expected="by name fraction, low and high from 0 to 1, and n "
            "(sana_rt.benchmarks.quality.scorer.Score).",
        ) from error
