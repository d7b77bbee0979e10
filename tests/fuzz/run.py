"""Fuzz for as long as wanted: ``python -m tests.fuzz.run --seconds 3600 --jobs 2``.

Each finding, an exception that is no SanaRTError, a read that takes too long or too much memory,
is kept as a file and shown; the exit code is 1 if there is one.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
from tests.fuzz import reach
from tests.fuzz.loop import Result, Task, fuzz


@click.command()
@click.option("--seconds", default=300.0, show_default=True, help="How long, over all targets.")
@click.option("--jobs", default=1, show_default=True, help="Processes at the same time.")
@click.option("--seed", default=0, show_default=True, help="Of the mutations.")
@click.option("--target", "names", multiple=True, help="Only these kinds of files.  [default: all]")
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/fuzz"))
def main(seconds: float, jobs: int, seed: int, names: tuple[str, ...], output: Path) -> None:
    """Spoil files and read them; findings and report.json are written below --output."""
    every = _targets()
    if unknown := set(names) - set(every):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: none of {', '.join(every)}.")
    chosen = names or tuple(every)
    bundle = _bundle(output / "materials")
    share = seconds * jobs / len(chosen)
    tasks = [Task(name, share, seed, bundle) for name in chosen]
    results = []
    # A fresh process each, which imports what its target needs, and nothing else.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        for result in pool.map(fuzz, tasks):
            results.append(result)
            _show(result, output)
    loaders = reach.report({arc for each in results for arc in each.reached})
    _show_reach(loaders)
    document = _document(results, loaders, {"seconds": seconds, "jobs": jobs, "seed": seed})
    (output / "report.json").write_text(f"{json.dumps(document, indent=2)}\n")
    found = sum(len(each.findings) for each in results)
    click.echo(f"{sum(each.executions for each in results):,} files read, {found} findings")
    sys.exit(1 if found else 0)


def _targets() -> list[str]:
    from tests.fuzz.targets import TARGETS

    return [target.name for target in TARGETS]


def _bundle(folder: Path) -> Path:
    """The smallest block-causal bundle; made once for each state of the code."""
    from tests import bundles

    root = folder / bundles.key()
    causal = root / "causal"
    if not (causal / "manifest.json").exists():
        click.echo("Making a bundle to play, which takes a minute ...", err=True)
        bundles.write_causal(bundles.write_tiny(root), causal)
    return causal


def _show(result: Result, output: Path) -> None:
    for finding in result.findings.values():
        click.echo(f"{finding.keep(output / 'findings')}\n{finding.what}")
    click.echo(
        f"{result.target}: {result.executions:,} files read, {result.seeds} kept as seeds, the "
        f"slowest {result.slowest_seconds:.2f} s, at most {result.most_bytes >> 20} MiB",
        err=True,
    )


def _show_reach(loaders: list[dict[str, Any]]) -> None:
    for each in loaders:
        lines = each["uncovered"]
        click.echo(
            f"{each['module']}: {each['lines_percent']} % of the lines, "
            f"{each['branches_percent']} % of the branches{f'; not {lines}' if lines else ''}"
        )


def _document(
    results: list[Result], loaders: list[dict[str, Any]], conditions: dict[str, Any]
) -> dict[str, Any]:
    from tests.fuzz.attempt import BYTES, SECONDS

    return {
        "conditions": conditions | {"limit_seconds": SECONDS, "limit_bytes": BYTES},
        "executions": sum(each.executions for each in results),
        "findings": sum(len(each.findings) for each in results),
        "slowest_of_limit": round(max(each.slowest_seconds for each in results) / SECONDS, 3),
        "most_bytes_of_limit": round(max(each.most_bytes for each in results) / BYTES, 3),
        "targets": [
            {
                "target": each.target,
                "executions": each.executions,
                "findings": len(each.findings),
                "seeds": each.seeds,
                "slowest_seconds": round(each.slowest_seconds, 4),
                "most_bytes": each.most_bytes,
            }
            for each in results
        ],
        "loaders": loaders,
    }


if __name__ == "__main__":
    main()
