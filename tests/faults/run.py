"""Spoil every file operation and every large allocation: ``python -m tests.faults.run``.

Each command runs once for each point and each way that it can go wrong there, then once more
undisturbed. The exit code is 1 if anything is not as it has to be.
"""

from __future__ import annotations

import collections
import errno
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
from tests.faults import preload
from tests.faults.cases import Case, Materials, Undisturbed, cases, transformer_only
from tests.faults.preload import Fault, Kind
from tests.faults.server import TRACEBACK
from tests.faults.warm import Outcome, Warm

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


@dataclass(frozen=True)
class Trial:
    """A command that met a fault: at which point, how it ended, and what is wrong about that."""

    case: str
    fault: str
    nth: int
    spoilt: str | None
    exit_code: int | None
    complaints: tuple[str, ...]
    output: str


class Bench:
    """A place where cases are tried."""

    def __init__(self, warm: Warm, scratch: Path) -> None:
        self._warm, self._scratch = warm, scratch

    def undisturbed(self, case: Case) -> Undisturbed:
        """Run a case without a fault; what it begins with and what it leaves are kept."""
        place = self._scratch / case.name.replace(" ", "-").replace(",", "")
        shutil.rmtree(place, ignore_errors=True)
        kept, root = place / "before", place / "after"
        kept.mkdir(parents=True)
        case.prepare(kept)
        # In the same place as all others, because outputs may name it.
        folder = self._fresh(case, place)
        outcome = self._warm.run(case.command(folder), folder, Fault(), place / "points")
        assert outcome.exit_code == 0, outcome.output
        shutil.copytree(folder, root)
        again = self._warm.run(case.command(folder), folder, Fault())
        assert again.exit_code == 0, again.output
        return Undisturbed(
            case.snapshot(kept), case.snapshot(root), case.snapshot(folder), root
        )

    def points(self, case: Case, undisturbed: Undisturbed, *, allocations: bool) -> int:
        """How many points a case has."""
        folder = self._fresh(case, undisturbed.root.parent)
        outcome = self._warm.run(case.command(folder), folder, Fault(allocations=allocations))
        assert outcome.exit_code == 0, outcome.output
        return outcome.points

    def attempt(self, case: Case, undisturbed: Undisturbed, name: str, nth: int) -> Trial:
        """Run a case with a fault at a point, and again without."""
        fault = replace(FAULTS[name], nth=nth)
        folder = self._fresh(case, undisturbed.root.parent)
        outcome = self._warm.run(case.command(folder), folder, fault)
        complaints = [
            *_wrong_end(outcome, fault),
            *self._wrong_files(case, undisturbed, folder, outcome),
        ]
        again = self._warm.run(case.command(folder), folder, Fault())
        if again.exit_code != 0:
            complaints.append(f"the next run ended with {again.exit_code}: {again.output[-500:]}")
        elif case.snapshot(folder) not in (undisturbed.after, undisturbed.again):
            complaints.append(f"after the next run {_difference(case, folder, undisturbed)}")
        return Trial(
            case.name, name, nth, outcome.spoilt, outcome.exit_code, tuple(complaints),
            outcome.output if complaints else "",
        )  # fmt: skip

    def _wrong_files(
        self, case: Case, undisturbed: Undisturbed, folder: Path, outcome: Outcome
    ) -> list[str]:
        removing = str(outcome.spoilt).startswith("unlink")  # then something may stay
        if outcome.exit_code == 0 and not removing and case.snapshot(folder) != undisturbed.after:
            return [f"it went on, and {_difference(case, folder, undisturbed)}"]
        failed = outcome.exit_code in {0, 1, 2} and not removing
        return case.judge(folder, undisturbed, failed)

    def _fresh(self, case: Case, place: Path) -> Path:
        folder = place / "tried"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(place / "before", folder)
        return folder


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


def _difference(case: Case, folder: Path, undisturbed: Undisturbed) -> str:
    found, wanted = case.snapshot(folder), undisturbed.after
    names = sorted({*found, *wanted})
    different = [name for name in names if found.get(name) != wanted.get(name)]
    return f"these files are not as they should be: {', '.join(different[:5])}"


def trials(bench: Bench, case: Case, names: list[str], every: int) -> Iterator[Trial]:
    """Try a case at every ``every``-th point of each fault."""
    undisturbed = bench.undisturbed(case)
    counts = {
        allocations: bench.points(case, undisturbed, allocations=allocations)
        for allocations in {FAULTS[name].allocations for name in names}
    }
    for shift, name in enumerate(names):
        points = range(1 + shift % every, counts[FAULTS[name].allocations] + 1, every)
        click.echo(f"{case.name}, {name}: {len(points)} points", err=True)
        for nth in points:
            yield bench.attempt(case, undisturbed, name, nth)


@click.command()
@click.option("--case", "chosen", multiple=True, help="Only these commands.")
@click.option("--fault", "names", multiple=True, type=click.Choice(list(FAULTS)))
@click.option("--every", default=1, show_default=True, help="Try one of so many points.")
@click.option("--report", type=click.Path(path_type=Path), default=Path("out/faults.json"))
@click.option("--materials", type=click.Path(path_type=Path), help="Keep what is made first here.")
def main(
    chosen: tuple[str, ...], names: tuple[str, ...], every: int, report: Path, materials: Path | None
) -> None:
    """Run commands with a fault at every point."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = materials or Path(scratch) / "materials"
        folder.mkdir(parents=True, exist_ok=True)
        with Warm(preload.build(Path(scratch))) as warm:
            made = _materials(folder, warm)
            found: list[Trial] = []
            for case in cases(made):
                if not chosen or case.name in chosen:
                    bench = Bench(warm, Path(scratch))
                    for trial in trials(bench, case, list(names or FAULTS), every):
                        found.append(trial)
                        _tell(trial)
    seconds = time.monotonic() - started
    rows = _rows(found)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(_document(found, rows, seconds), indent=2))
    for row in rows:
        click.echo(f"{row['command']:24} {row['fault']:24} {row['points']:6} {row['complaints']:6}")
    sys.exit(1 if any(trial.complaints for trial in found) else 0)


def _tell(trial: Trial) -> None:
    if trial.complaints:
        click.echo(f"{trial.case}, {trial.fault} at {trial.nth} ({trial.spoilt}): exit code {trial.exit_code}", err=True)
        for complaint in trial.complaints:
            click.echo(f"    {complaint}", err=True)


def _rows(found: list[Trial]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Trial]] = collections.defaultdict(list)
    for trial in found:
        groups[trial.case, trial.fault].append(trial)
    return [
        {
            "command": case,
            "fault": fault,
            "points": len(each),
            "exit_codes": dict(collections.Counter(str(trial.exit_code) for trial in each)),
            "wrong": sum(any("WRONG" in c for c in trial.complaints) for trial in each),
            "complaints": sum(bool(trial.complaints) for trial in each),
        }
        for (case, fault), each in groups.items()
    ]


def _document(found: list[Trial], rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds),
        "runs": len(found),
        "wrong": sum(row["wrong"] for row in rows),
        "table": rows,
        "findings": [vars(trial) for trial in found if trial.complaints],
    }


def _materials(folder: Path, warm: Warm) -> Materials:
    """A small model, exported; of what is spoilt in export, the graphs of the transformer."""
    import msgspec
    from tests.conftest import write_blocks, write_causal

    from sana_rt.export.seeded import SMALL, write_checkpoint

    edit = msgspec.structs.replace
    spec = edit(
        SMALL,
        transformer=edit(SMALL.transformer, num_layers=1),
        text=edit(SMALL.text, num_layers=1),
    )
    names = ("checkpoint", "transformer", "playable", "causal", "blocks")
    checkpoint, transformer, playable, causal, blocks = (folder / name for name in names)
    if not causal.exists():
        write_checkpoint(checkpoint, spec=spec)
        outcome = warm.run(["export", str(checkpoint), str(playable)], folder, Fault())
        assert outcome.exit_code == 0, outcome.output
        write_blocks(blocks)
        write_causal(playable, causal)
    transformer_only(checkpoint, transformer)
    warm.trace(transformer)
    return Materials(transformer, playable, causal, blocks)


if __name__ == "__main__":
    main()
