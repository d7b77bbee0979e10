"""What is fuzzed, one kind at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutations import Mutation


@dataclass(frozen=True)
class Target:
    """A kind of file: examples that are read without complaint, and what reads them.

    ``seeds`` are made in a scratch folder. ``read`` is given the path of a spoilt file in that
    folder; it may raise a :class:`SanaRTError` and nothing else. Where it plays, there is a
    block-causal bundle called ``bundle`` in the folder. The suite tries ``count`` files: for
    all targets five minutes of one processor.
    """

    name: str
    suffix: str
    seeds: Callable[[Path], list[bytes]]
    mutate: Mutation
    read: Callable[[Path], object]
    plays: bool = False
    count: int = 3000
