"""One target, spoilt and read for as long as wanted, led by what is reached."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.fuzz.reach import Arc, Reach

if TYPE_CHECKING:
    from tests.fuzz.attempt import Attempt, Finding

#: Files that are read before looking at what was reached; if anything is new, each again alone.
_BATCH: Final = 64
#: What a process may map, so that a read without an end is a finding and not the machine's end.
_ADDRESS_SPACE: Final = 8 << 30


@dataclass(frozen=True)
class Task:
    """What to fuzz, for how long, from which seed; ``bundle`` is what is played."""

    target: str
    seconds: float
    seed: int
    bundle: Path


@dataclass
class Result:
    """What came of it."""

    target: str
    executions: int = 0
    seeds: int = 0
    slowest_seconds: float = 0.0
    most_bytes: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)
    reached: set[Arc] = field(default_factory=set)

    def count(self, done: Attempt) -> None:
        """Add an attempt."""
        self.executions += 1
        self.slowest_seconds = max(self.slowest_seconds, done.seconds)
        self.most_bytes = max(self.most_bytes, done.bytes)
        if done.finding is not None:
            self.findings.setdefault(done.finding.where or done.finding.what, done.finding)


def fuzz(task: Task) -> Result:
    """Fuzz a target in a process of its own: what imports run counts as reached."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    reach, result = Reach(), Result(task.target)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "bundle").symlink_to(task.bundle.resolve())
        result.reached |= reach.of(lambda: _begin(task, folder, result))
        _continue(task, folder, result, reach)
    return result


def _begin(task: Task, folder: Path, result: Result) -> None:
    from tests.fuzz.attempt import attempt
    from tests.fuzz.targets import BY_NAME

    target = BY_NAME[task.target]
    for data in target.seeds(folder):
        result.count(attempt(target, data, folder))


def _continue(task: Task, folder: Path, result: Result, reach: Reach) -> None:
    from tests.fuzz.attempt import attempt
    from tests.fuzz.corpus import Corpus
    from tests.fuzz.targets import BY_NAME

    end, target = time.monotonic() + task.seconds, BY_NAME[task.target]
    corpus = Corpus(target, folder, task.seed)

    def read(batch: list[bytes]) -> None:
        for data in batch:
            result.count(attempt(target, data, folder))
            if time.monotonic() > end:
                break

    while time.monotonic() < end:
        batch = [corpus.spoil() for _ in range(_BATCH)]
        found = reach.of(lambda batch=batch: read(batch))
        if found <= result.reached:
            continue
        for data in batch:
            new = reach.of(lambda data=data: attempt(target, data, folder)) - result.reached
            if new:
                corpus.keep(data)
                result.reached |= new
        result.reached |= found
    result.seeds = len(corpus.seeds)
