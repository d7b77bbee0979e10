"""Spoil every file operation and every large allocation: ``python -m tests.faults.run``.

Each command runs once for each point and each way that it can go wrong there, then once more
undisturbed. The exit code is 1 if anything is not as it has to be; report.json is written below
--output.
"""

from __future__ import annotations

import collections
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from tests import bundles
from tests.faults import preload
from tests.faults.bench import FAULTS, Bench, Trial, trials
from tests.faults.cases import Materials, cases, transformer_only
from tests.faults.preload import Fault
from tests.faults.warm import Warm

_COLUMNS = "{:24}{:26}{:>8}{:>10}{:>8}{:>9}{:>8}{:>8}"


@click.command()
@click.option("--case", "chosen", multiple=True, help="Only these commands.  [default: all]")
@click.option("--fault", "names", multiple=True, type=click.Choice(list(FAULTS)))
@click.option("--every", default=1, show_default=True, help="Try one of so many points.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/faults"))
def main(chosen: tuple[str, ...], names: tuple[str, ...], every: int, output: Path) -> None:
    """Let commands meet a fault at every point."""
    started, found = time.monotonic(), list[Trial]()
    with tempfile.TemporaryDirectory() as scratch, Warm(preload.build(Path(scratch))) as warm:
        materials = _materials(output / "materials" / bundles.key(), warm)
        for case in cases(materials):
            if chosen and case.name not in chosen:
                continue
            for trial in trials(Bench(warm, Path(scratch)), case, names or list(FAULTS), every):
                found.append(trial)
                _tell(trial)
    rows = _rows(found)
    _show(rows)
    document = {
        "conditions": {"every": every, "large_bytes": preload.LARGE},
        "seconds": round(time.monotonic() - started),
        "points": len(found),
        "wrong": sum(row["wrong"] for row in rows),
        "table": rows,
        "findings": [vars(trial) for trial in found if trial.complaints],
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(f"{json.dumps(document, indent=2)}\n")
    sys.exit(1 if document["findings"] else 0)


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
            "points": len(each),
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
    names = ("command", "fault", "points", "went on", "error", "killed", "wrong", "findings")
    click.echo(_COLUMNS.format(*names))
    for row in rows:
        click.echo(_COLUMNS.format(*row.values()))


def _materials(folder: Path, warm: Warm) -> Materials:
    """What commands begin with; made once for each state of the code."""
    playable = bundles.write_tiny(folder)
    transformer = transformer_only(playable.with_name("checkpoint"), folder / "transformer")
    warm.trace(transformer)
    exported, causal, blocks = (folder / name for name in ("exported", "causal", "blocks"))
    if not blocks.exists():
        export = ["export", str(transformer), str(exported), "--no-verify"]
        outcome = warm.run(export, folder, Fault())
        assert outcome.exit_code == 0, outcome.output
        bundles.write_causal(playable, causal)
        bundles.write_blocks(blocks)
    return Materials(transformer, exported, playable, causal, blocks)


if __name__ == "__main__":
    main()
