"""A little of what ``make fuzz`` does, and every file that once was a finding."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tests.fuzz.run import attempt, spoilt
from tests.fuzz.targets import DATA, TARGETS, Target

COUNT = 60
BY_NAME = {target.name: target for target in TARGETS}
KEPT = sorted(path for path in (DATA / "fuzz").glob("*/*"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_spoilt_files_end_in_typed_errors(target: Target, scratch: Path) -> None:
    for data in itertools.islice(spoilt(target, scratch, seed=1), COUNT):
        finding = attempt(target, data, scratch)
        assert finding is None, finding.what


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_was_a_finding(path: Path, scratch: Path) -> None:
    target = BY_NAME[path.parent.name]
    target.seeds(scratch)  # makes what the file lies in
    finding = attempt(target, path.read_bytes(), scratch)
    assert finding is None, finding.what
