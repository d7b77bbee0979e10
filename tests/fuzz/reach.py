"""Which lines and branches of the modules that read foreign files have been run."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import coverage

#: What reads files and arguments of strangers.
LOADERS: Final = (
    "sana_rt.array_files",
    "sana_rt.bundle",
    "sana_rt.documents",
    "sana_rt.geometry",
    "sana_rt.manifest",
    "sana_rt.model_spec",
    "sana_rt.tensors",
    "sana_rt.frame_sizes",
    "sana_rt.cli.list_results",
    "sana_rt.cli.prompt_list",
    "sana_rt.cli.prompts_file",
    "sana_rt.engines.plan_table",
    "sana_rt.engines.profiles",
    "sana_rt.engines.workloads",
    "sana_rt.export.checkpoint",
    "sana_rt.export.config_keys",
    "sana_rt.export.config_tables",
    "sana_rt.export.configs",
    "sana_rt.export.instructions",
    "sana_rt.export.lora",
    "sana_rt.export.weights",
    "sana_rt.quantize.calibration_table",
    "sana_rt.quantize.recipe",
    "sana_rt.runtime.image_metadata",
    "sana_rt.runtime.images",
    "sana_rt.runtime.inputs",
    "sana_rt.runtime.player",
    "sana_rt.runtime.prompt_schedule",
    "sana_rt.runtime.request",
    "sana_rt.runtime.state",
    "sana_rt.runtime.stream",
    "sana_rt.runtime.text",
)

Arc = tuple[str, int, int]  # a module, and two lines of it that were run one after the other


class Reach:
    """Measures in this process; to be made before the modules are imported."""

    def __init__(self) -> None:
        self._names = {str(path): name for name, path in _paths().items()}
        self._coverage = coverage.Coverage(
            data_file=None, branch=True, config_file=False, include=list(self._names)
        )

    def of(self, run: Callable[[], object]) -> set[Arc]:
        """What a call runs."""
        self._coverage.erase()
        with self._coverage.collect():
            run()
        data = self._coverage.get_data()
        return {
            (self._names[file], begin, end)
            for file in data.measured_files()
            for begin, end in data.arcs(file) or ()
        }


def report(arcs: Iterable[Arc]) -> list[dict[str, Any]]:
    """For each module how much of it was run, in percent, and the lines that never were."""
    paths = {name: str(path) for name, path in _paths().items()}
    found: dict[str, list[tuple[int, int]]] = {path: [] for path in paths.values()}
    for name, begin, end in arcs:
        found[paths[name]].append((begin, end))
    measured = coverage.Coverage(data_file=None, branch=True, config_file=False)
    measured.get_data().add_arcs(found)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "coverage.json"
        measured.json_report(morfs=list(paths.values()), outfile=str(written))
        files = json.loads(written.read_bytes())["files"]
    by_path = {str(Path(name).resolve()): each for name, each in files.items()}
    return [_module(name, by_path[path]) for name, path in paths.items()]


def _module(name: str, measured: dict[str, Any]) -> dict[str, Any]:
    summary = measured["summary"]
    branches = summary["num_branches"]
    covered = 100 * summary["covered_branches"] / branches if branches else 100.0
    lines = 100 * summary["covered_lines"] / max(1, summary["num_statements"])
    return {
        "module": name,
        "lines_percent": round(lines, 1),
        "branches_percent": round(covered, 1),
        "lines": summary["num_statements"],
        "branches": branches,
        "uncovered": _ranges(measured["missing_lines"]),
    }


def _ranges(lines: list[int]) -> str:
    """Numbers of lines as people read them: ``3, 7-9``."""
    groups: list[list[int]] = []
    for line in lines:
        if groups and line == groups[-1][-1] + 1:
            groups[-1].append(line)
        else:
            groups.append([line])
    return ", ".join(
        f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups
    )


def _paths() -> dict[str, Path]:
    """Where the modules are; only their packages are imported."""
    specs = {name: importlib.util.find_spec(name) for name in LOADERS}
    return {name: Path(str(spec and spec.origin)).resolve() for name, spec in specs.items()}
