"""Where commands are tried: at a point, in a way, and again without a fault."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.faults.cases import WRONG, Case, Undisturbed, snapshot
from tests.faults.preload import Fault, Kind
from tests.faults.server import TRACEBACK
from tests.faults.warm import Outcome, Warm

from sana_rt.files import PARTIAL_SUFFIX

#: What goes wrong at each point, by its name in the table.
FAULTS: Final = {
    "full disk": Fault(Kind.FROM_THEN_ON, error=errno.ENOSPC),
    "EIO": Fault(Kind.ONCE, error=errno.EIO),
    "EPERM": Fault(Kind.ONCE, error=errno.EPERM),
    "kill": Fault(Kind.KILL),
    "no memory": Fault(Kind.ONCE, error=errno.ENOMEM, allocations=True),
    "no memory from then on": Fault(Kind.FROM_THEN_ON, error=errno.ENOMEM, allocations=True),
}
_KILLED: Final = 137
_TOKEN: Final = rf"[0-9a-f]+(?=\{PARTIAL_SUFFIX}$)"


@dataclass(frozen=True)
class Trial:
    """A command that met a fault: at which point, how it ended, and what is wrong about that.

    ``count`` is how many points it has of that kind.
    """

    case: str
    fault: str
    nth: int
    spoilt: str | None
    exit_code: int | None
    complaints: tuple[str, ...]
    output: str
    count: int = 0

    @property
    def is_killed(self) -> bool:
        """Whether it ended without a say: by the fault, or by a library that got no memory."""
        return self.exit_code is None or self.exit_code == _KILLED or self.exit_code < 0

    @property
    def is_wrong(self) -> bool:
        """Whether something that it left looks whole and is not."""
        return any(each.startswith(WRONG) for each in self.complaints)


class Bench:
    """A place where cases are tried."""

    def __init__(self, warm: Warm, scratch: Path) -> None:
        self.warm, self._scratch = warm, scratch
        self._continued: dict[tuple[str, frozenset[str]], list[str]] = {}

    def undisturbed(self, case: Case) -> Undisturbed:
        """Run a case without a fault; what it begins with and what it leaves are kept."""
        place = self._scratch / case.name.replace(" ", "-").replace(",", "")
        shutil.rmtree(place, ignore_errors=True)
        kept, root = place / "before", place / "after"
        kept.mkdir(parents=True)
        case.prepare(kept)
        # In the same place as all others, because outputs may name it.
        folder = self._fresh(place)
        outcome = self.warm.run(case.command(folder), folder, Fault(), place / "points")
        assert outcome.exit_code == 0, outcome.output
        shutil.copytree(folder, root)
        again = self.warm.run(case.command(folder), folder, Fault())
        assert again.exit_code == 0, again.output
        return Undisturbed(snapshot(kept), snapshot(root), snapshot(folder), root)

    def points(self, case: Case, undisturbed: Undisturbed, *, allocations: bool) -> int:
        """How many points a case has."""
        folder = self._fresh(undisturbed.root.parent)
        outcome = self.warm.run(case.command(folder), folder, Fault(allocations=allocations))
        assert outcome.exit_code == 0, outcome.output
        return outcome.points

    def attempt(self, case: Case, undisturbed: Undisturbed, name: str, nth: int) -> Trial:
        """Run a case with a fault at a point, and again without."""
        fault = replace(FAULTS[name], nth=nth)
        folder = self._fresh(undisturbed.root.parent)
        outcome = self.warm.run(case.command(folder), folder, fault)
        complaints = [
            *_wrong_end(outcome, fault),
            *_wrong_files(case, undisturbed, folder, outcome),
        ]
        complaints += self._continue(case, undisturbed, folder)
        return Trial(
            case.name, name, nth, outcome.spoilt, outcome.exit_code, tuple(complaints),
            outcome.output if complaints else "",
        )  # fmt: skip

    def _continue(self, case: Case, undisturbed: Undisturbed, folder: Path) -> list[str]:
        """Run a case again on what a fault left; once for each thing that can be left."""
        key = case.name, _state(folder)
        if key not in self._continued:
            again = self.warm.run(case.command(folder), folder, Fault())
            self._continued[key] = []
            if again.exit_code != 0:
                said = f"the next run ended with {again.exit_code}: {again.output[-500:]}"
                self._continued[key] = [said]
            elif snapshot(folder) not in (undisturbed.after, undisturbed.again):
                self._continued[key] = [f"after the next run {_difference(folder, undisturbed)}"]
        return self._continued[key]

    def _fresh(self, place: Path) -> Path:
        folder = place / "tried"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(place / "before", folder)
        return folder


def _state(folder: Path) -> frozenset[str]:
    """All that is in a folder; what is random in a temporary name is left out."""
    contents = snapshot(folder)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return frozenset(
        f"{re.sub(_TOKEN, '', name)} {contents.get(name, '')}" for name in sorted(names)
    )


def _wrong_files(case: Case, undisturbed: Undisturbed, folder: Path, outcome: Outcome) -> list[str]:
    removing = str(outcome.spoilt).startswith("unlink")
    if outcome.exit_code == 0 and not removing and snapshot(folder) != undisturbed.after:
        return [f"it went on, and {_difference(folder, undisturbed)}"]
    # Where removing fails something stays. Where it is not certain that the new manifest is on
    # the disk, the files of the old one have to.
    stays = removing or outcome.spoilt == "sync /bundle"
    return case.judge(folder, undisturbed, outcome.exit_code in {0, 1} and not stays)


def _wrong_end(outcome: Outcome, fault: Fault) -> Iterator[str]:
    code = outcome.exit_code
    if outcome.spoilt is None:
        yield "the point was not reached"
    if code is None:
        yield "it hung"
    elif code < 0 and fault.allocations:
        return  # libraries in C++ and Rust end the process; it is a kill for the files
    elif code == TRACEBACK or "Traceback" in outcome.output:
        yield f"a traceback: {outcome.output.strip().splitlines()[-1]}"
    elif fault.kind is Kind.KILL:
        if code != _KILLED:
            yield f"it ended with {code}"
    elif code not in {0, 1}:
        yield f"it ended with {code}"


def _difference(folder: Path, undisturbed: Undisturbed) -> str:
    found, wanted = snapshot(folder), undisturbed.after
    names = sorted({*found, *wanted})
    different = [name for name in names if found.get(name) != wanted.get(name)]
    return f"these files are not as they should be: {', '.join(different[:5])}"


def trials(bench: Bench, case: Case, names: Sequence[str], every: int) -> Iterator[Trial]:
    """Try a case at every ``every``-th point of each fault."""
    undisturbed = bench.undisturbed(case)
    counts = {
        allocations: bench.points(case, undisturbed, allocations=allocations)
        for allocations in {FAULTS[name].allocations for name in names}
    }
    for shift, name in enumerate(names):
        count = counts[FAULTS[name].allocations]
        for nth in range(1 + shift % every, count + 1, every):
            trial = replace(bench.attempt(case, undisturbed, name, nth), count=count)
            if trial.spoilt is None and name == "full disk":
                continue  # it lets files go
            yield trial
