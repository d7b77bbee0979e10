"""Spoil every file operation and every large allocation: ``python -m tests.faults.run``.

Each command runs once for each point and each way that it can go wrong there, then once more
undisturbed. The exit code is 1 if anything is not as it has to be; report.json is written below
--output.
"""

from __future__ import annotations

import collections
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tests import bundles
from tests.faults import preload
from tests.faults.bench import FAULTS, Bench, Trial, trials
from tests.faults.cases import Materials, cases, transformer_only
from tests.faults.warm import Warm

_COLUMNS = "{:24}{:26}{:>8}{:>7}{:>9}{:>7}{:>8}{:>7}{:>10}"


@click.command()
@click.option("--case", "chosen", multiple=True, help="Only these commands.  [default: all]")
@click.option("--fault", "names", multiple=True, type=click.Choice(list(FAULTS)))
@click.option("--jobs", default=1, show_default=True, help="Commands at the same time.")
@click.option("--every", default=1, show_default=True, help="Try one of so many points.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/faults"))
def main(
    chosen: tuple[str, ...], names: tuple[str, ...], jobs: int, every: int, output: Path
) -> None:
    """Let commands meet a fault at every point."""
    started, found = time.monotonic(), list[Trial]()
    materials = _materials(output / "materials" / bundles.key())
    tasks = [
        Task(case.name, materials, names or tuple(FAULTS), every)
        for case in cases(materials)
        if not chosen or case.name in chosen
    ]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for each in pool.map(attempt_all, tasks):
            found += each
            for trial in each:
                _tell(trial)
            _show(_rows(each))
            conditions = {"every": every, "large_bytes": preload.LARGE}
            document = _document(found, conditions, time.monotonic() - started)
            output.mkdir(parents=True, exist_ok=True)  # a run that is ended has what it found
            (output / "report.json").write_text(f"{json.dumps(document, indent=2)}\n")
    _show(_rows(found))
    sys.exit(1 if any(trial.complaints for trial in found) else 0)


def _document(found: list[Trial], conditions: dict[str, Any], seconds: float) -> dict[str, Any]:
    rows = _rows(found)
    return {
        "conditions": conditions,
        "seconds": round(seconds),
        "runs": len(found),
        "wrong": sum(row["wrong"] for row in rows),
        "table": rows,
        "findings": [vars(trial) for trial in found if trial.complaints],
    }


@dataclass(frozen=True)
class Task:
    """A command to try, and with which faults."""

    case: str
    materials: Materials
    faults: tuple[str, ...]
    every: int


def attempt_all(task: Task) -> list[Trial]:
    """Try a command, in a process of its own."""
    (case,) = (case for case in cases(task.materials) if case.name == task.case)
    with tempfile.TemporaryDirectory() as scratch, Warm(preload.build(Path(scratch))) as warm:
        if case.traced is not None:
            warm.trace(case.traced)
        return list(trials(Bench(warm, Path(scratch)), case, task.faults, task.every))


def _tell(trial: Trial) -> None:
    if trial.complaints:
        where = f"{trial.fault} at {trial.nth} ({trial.spoilt})"
        click.echo(f"{trial.case}, {where}: exit code {trial.exit_code}", err=True)
        for complaint in trial.complaints:
            click.echo(f"    {complaint}", err=True)


def _rows(found: Iterable[Trial]) -> list[dict[str, Any]]:
    """By command and kind of fault: how many points, how they ended, what is wrong."""
    groups: dict[tuple[str, str], list[Trial]] = collections.defaultdict(list)
    for trial in found:
        groups[trial.case, trial.fault].append(trial)
    return [
        {
            "command": case,
            "fault": fault,
            "points": each[0].count,
            "tried": len(each),
            "went_on": sum(trial.exit_code == 0 for trial in each),
            "refused": sum(trial.exit_code == 1 for trial in each),
            "ended": sum(trial.is_killed for trial in each),
            "wrong": sum(trial.is_wrong for trial in each),
            "findings": sum(bool(trial.complaints) for trial in each),
        }
        for (case, fault), each in groups.items()
    ]


def _show(rows: list[dict[str, Any]]) -> None:
    """A table; ``wrong`` are bundles and outputs that look whole and are not."""
    names = (
        "command",
        "fault",
        "points",
        "tried",
        "went on",
        "error",
        "killed",
        "wrong",
        "findings",
    )
    click.echo(_COLUMNS.format(*names))
    for row in rows:
        click.echo(_COLUMNS.format(*row.values()))


def _materials(folder: Path) -> Materials:
    """What commands begin with; made once for each state of the code, in a minute or two."""
    playable = bundles.write_tiny(folder)
    transformer = transformer_only(playable.with_name("checkpoint"), folder / "transformer")
    exported, causal, blocks = (folder / name for name in ("exported", "causal", "blocks"))
    if not blocks.exists():
        from sana_rt.export.checkpoint import open_checkpoint
        from sana_rt.export.onnx_export import ExportOptions, export_bundle

        export_bundle(open_checkpoint(transformer), exported, ExportOptions(verify=False))
        bundles.write_causal(playable, causal)
        bundles.write_blocks(blocks)
    return Materials(transformer, exported, playable, causal, blocks)


if __name__ == "__main__":
    main()
