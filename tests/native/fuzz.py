"""Fuzz what the native library reads: ``python -m tests.native.fuzz --seconds 600 --jobs 2``.

Each target (``runtime/native/tests/fuzz_*.cpp``) is libFuzzer with AddressSanitizer and
UndefinedBehaviorSanitizer. The findings of a run are kept below ``--output``; with one, or a
target that reads nothing, the exit code is 1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

ROOT: Final = Path(__file__).parents[2]
CASES: Final = ROOT / "tests/data/native/fuzz"
MANIFESTS: Final = ROOT / "tests/data/manifests"
TOKENIZER: Final = ROOT / "examples/shapes/checkpoints/tokenizer/tokenizer.json"
#: Of one file: above what a large one of its kind needs, below what would harm a machine.
LIMITS: Final = ("-timeout=20", "-rss_limit_mb=2048", "-malloc_limit_mb=1024")
_STATISTIC: Final = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)
_COVERAGE: Final = re.compile(r"cov: (\d+) ft: (\d+)")


@dataclass(frozen=True)
class Result:
    """What a target did; ``edges`` and ``features`` are libFuzzer's words."""

    target: str
    executions: int
    seconds: float
    edges: int
    features: int
    corpus: int
    peak_mebibytes: int
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A target's seeds, and the longest file that is made of them."""

    seeds: Callable[[Path], Iterator[bytes]]
    max_len: int


def _manifests(_: Path) -> Iterator[bytes]:
    for path in sorted(MANIFESTS.glob("*valid/*.json")):
        yield path.read_bytes()


def _tokenizers(folder: Path) -> Iterator[bytes]:
    from sana_rt.export.seeded import SMALL, write_tokenizer

    write_tokenizer(folder, SMALL.text)
    for path in (folder / "tokenizer.json", TOKENIZER):
        document = json.loads(path.read_text())
        yield json.dumps(document, ensure_ascii=False).encode()
        yield from _small_tokenizers(document)


def _small_tokenizers(document: dict[str, Any]) -> Iterator[bytes]:
    """The same with a vocabulary of a few tokens, and with parts that neither has."""
    model = document["model"]
    model["vocab"] = {"a": 0, "b": 1, "ab": 2, "▁": 3, "<unk>": 4, "<0x0A>": 5, "Ġ": 6, "圆": 7}
    model["merges"] = [["a", "b"]]
    model["unk_token"] = "<unk>"
    regex = {"type": "Split", "pattern": {"Regex": r"\s+(?!\S)|\p{L}+"}, "invert": False}
    added = {"single_word": True, "lstrip": True, "rstrip": True, "normalized": True}
    document["added_tokens"] = [{"id": 8, "content": "<bos>", "special": True} | added]
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        document["pre_tokenizer"] = regex | {"behavior": behavior}
        yield json.dumps(document, ensure_ascii=False).encode() + "\0a ab 圆\nabab <bos>".encode()


def _states(folder: Path) -> Iterator[bytes]:
    from sana_rt.runtime.prompt_schedule import ScheduledPrompt
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.state import Header, Identity, Position, State

    options: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 9, "fps": 8}
    solver: dict[str, Any] = {
        "motion_score": 0,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "flow_shift": 7.0,
    }
    request = Request(
        "a 圆", "blue", solver="renoise", timesteps=(1000.0, 0.5), **options, **solver
    )
    header = Header(
        format="sana-rt-stream", format_version=2, identity=Identity("m", "fp32", "a" * 64),
        request=request, prompts=(ScheduledPrompt(7, "b"),), position=Position(1, 2, 3),
    )  # fmt: skip
    for arrays in _ARRAYS, ():
        State(header, {f"a{i}": array for i, array in enumerate(arrays)}).save(folder / "a.state")
        yield (folder / "a.state").read_bytes()
    np.savez_compressed(folder / "b.npz", header=np.zeros(3, np.uint8), z=np.zeros((64, 64)))
    yield (folder / "b.npz").read_bytes()


_ARRAYS: Final = (
    np.ones((2, 3), np.float32),
    np.ones((), np.float16),
    np.ones((0, 5), np.int64),
    np.ones(4, np.int32),
    np.ones((1, 1, 2, 2), np.uint8),
    np.ones(3, np.bool_),
)


def _arrays(folder: Path) -> Iterator[bytes]:
    for index, array in enumerate((*_ARRAYS, np.ones((3, 2)).T, np.array(["a"]))):
        path = folder / f"{index}.npy"
        np.save(path, array)
        yield path.read_bytes()


TARGETS: Final = {
    "manifest": Target(_manifests, 1 << 16),
    "tokenizer": Target(_tokenizers, 1 << 14),
    "state": Target(_states, 1 << 14),
    "array": Target(_arrays, 1 << 12),
}


@click.command()
@click.option("--seconds", default=300.0, show_default=True, help="How long, over all targets.")
@click.option("--jobs", default=1, show_default=True, help="Targets at the same time.")
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)))
@click.option("--build", type=click.Path(path_type=Path), default=Path("build/native-fuzz"))
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/native-fuzz"))
def main(seconds: float, jobs: int, names: tuple[str, ...], build: Path, output: Path) -> None:
    """Spoil files and read them; corpora, findings and report.json are written below --output."""
    chosen = names or tuple(TARGETS)
    share = max(1, round(seconds * jobs / len(chosen)))
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda name: _fuzz(name, build, output, share), chosen))
    report = {"seconds": seconds, "jobs": jobs, "targets": [asdict(each) for each in results]}
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(1 if any(each.findings for each in results) else 0)


def _fuzz(name: str, build: Path, output: Path, seconds: int) -> Result:
    target = TARGETS[name]
    corpus, seeds, findings = (output / name / part for part in ("corpus", "seeds", "findings"))
    for folder in (seeds, findings):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (corpus, seeds, findings):
        folder.mkdir(parents=True, exist_ok=True)
    _write_seeds(target, seeds)
    _write_dictionary(seeds, output / name / "dictionary")
    command = [
        str(build / f"tests/fuzz_{name}"), *LIMITS, f"-max_total_time={seconds}",
        f"-max_len={target.max_len}", f"-dict={output / name / 'dictionary'}",
        f"-artifact_prefix={findings}/", "-print_final_stats=1", "-verbosity=1",
        *map(str, (corpus, seeds, *CASES.glob(name))),
    ]  # fmt: skip
    log = output / name / "log"
    with log.open("w") as file:
        ran = subprocess.run(command, stdout=file, stderr=file, check=False, preexec_fn=_be_nice)
    result = _result(name, log.read_text(errors="replace"), seconds, findings)
    if not result.findings and (ran.returncode or not result.executions):
        raise click.ClickException(
            f"fuzz_{name} read {result.executions} files and ended with {ran.returncode}: {log}"
        )
    click.echo(f"{name}: {result.executions:,} files read, {result.edges:,} edges, {log}")
    for finding in result.findings:
        click.echo(finding)
    return result


def _be_nice() -> None:
    os.nice(5)


def _write_seeds(target: Target, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for index, seed in enumerate(target.seeds(Path(scratch))):
            if len(seed) <= target.max_len:
                (folder / str(index)).write_bytes(seed)


def _write_dictionary(seeds: Path, path: Path) -> None:
    """The short strings of all seeds, with their quotes."""
    words: set[bytes] = set()
    for seed in seeds.iterdir():
        words |= set(re.findall(rb"""["'][\w <>|./-]{1,24}["']""", seed.read_bytes()))
    lines = (b'"%s"\n' % word.replace(b'"', b'\\"') for word in sorted(words)[:2000])
    path.write_bytes(b"".join(lines))


def _result(name: str, log: str, seconds: float, findings: Path) -> Result:
    statistics = {key: int(value) for key, value in _STATISTIC.findall(log)}
    edges, features = max(
        (tuple(map(int, each)) for each in _COVERAGE.findall(log)), default=(0, 0)
    )
    return Result(
        target=name,
        executions=statistics.get("number_of_executed_units", 0),
        seconds=seconds,
        edges=edges,
        features=features,
        corpus=statistics.get("new_units_added", 0),
        peak_mebibytes=statistics.get("peak_rss_mb", 0),
        findings=tuple(sorted(str(path) for path in findings.iterdir())),
    )


if __name__ == "__main__":
    main()
