"""Some of what ``make faults`` does: a few points of every command, in every way."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults import preload
from tests.faults.bench import FAULTS, Bench, trials
from tests.faults.cases import Case, Materials, cases, transformer_only
from tests.faults.warm import Warm

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or preload.COMPILER is None,
    reason="needs LD_PRELOAD of Linux and a C compiler",
)

#: One of so many points is tried, another one for each fault.
EVERY = {"export": 41, "quantize": 41, "build": 131, "quantize, calibrated": 151,
         "generate": 37, "stream": 37}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    scratch = tmp_path_factory.mktemp("faults")
    with Warm(preload.build(scratch)) as warm:
        yield Bench(warm, scratch)


@pytest.fixture(scope="module")
def checkpoint(
    bench: Bench, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What is exported: the small checkpoint's transformer, traced."""
    folder = tmp_path_factory.mktemp("transformer") / "checkpoint"
    transformer_only(small_checkpoint, folder)
    bench.warm.trace(folder)
    return folder


@pytest.fixture(scope="module")
def commands(
    checkpoint: Path, small_bundle: Path, causal_bundle: Path, block_bundle: Path
) -> dict[str, Case]:
    found = cases(Materials(checkpoint, None, small_bundle, causal_bundle, block_bundle))
    return {case.name: case for case in found}


@pytest.mark.parametrize("name", EVERY)
def test_a_fault_ends_in_an_error_and_leaves_nothing_wrong(
    name: str, commands: dict[str, Case], bench: Bench
) -> None:
    tried = list(trials(bench, commands[name], list(FAULTS), EVERY[name]))
    assert {trial.fault for trial in tried} == set(FAULTS)
    assert [trial for trial in tried if trial.complaints] == []


def test_a_point_that_is_not_there_is_not_reached(commands: dict[str, Case], bench: Bench) -> None:
    """Or a harness that spoils nothing would find nothing."""
    case = commands["quantize"]
    undisturbed = bench.undisturbed(case)
    last = bench.points(case, undisturbed, allocations=False)
    assert last > 20
    beyond = bench.attempt(case, undisturbed, "kill", last + 1)
    assert "the point was not reached" in beyond.complaints


def test_what_is_left_wrong_is_noticed(
    commands: dict[str, Case], bench: Bench, tmp_path: Path
) -> None:
    case = commands["quantize"]
    undisturbed = bench.undisturbed(case)
    assert case.judge(undisturbed.root, undisturbed, True) == []
    folder = Path(shutil.copytree(undisturbed.root, tmp_path / "tried"))
    (folder / "bundle/fp32/block_00.onnx.0123.partial").touch()
    assert case.judge(folder, undisturbed, True) == [
        "left over: bundle/fp32/block_00.onnx.0123.partial"
    ]
    with (folder / "bundle/fp32/block_00.onnx").open("r+b") as file:
        file.write(b"\0")
    assert "does not verify" in case.judge(folder, undisturbed, False)[0]
