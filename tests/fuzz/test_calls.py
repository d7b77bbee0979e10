"""The same for what is done with a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fuzz.attempt import attempt
from tests.fuzz.calls import CALLS
from tests.fuzz.corpus import Corpus
from tests.fuzz.files import DATA
from tests.fuzz.target import Target

BY_NAME = {target.name: target for target in CALLS}
KEPT = sorted(path for path in (DATA / "fuzz").glob("*/*") if path.parent.name in BY_NAME)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory, causal_bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "bundle").symlink_to(causal_bundle)
    return folder


@pytest.mark.parametrize("target", CALLS, ids=lambda target: target.name)
def test_spoilt_files_end_in_typed_errors(target: Target, scratch: Path) -> None:
    corpus = Corpus(target, scratch, seed=1)
    for _ in range(target.count):
        finding = attempt(target, corpus.spoil(), scratch).finding
        assert finding is None, finding.what


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_was_a_finding(path: Path, scratch: Path) -> None:
    target = BY_NAME[path.parent.name]
    target.seeds(scratch)  # makes what the file lies in
    finding = attempt(target, path.read_bytes(), scratch).finding
    assert finding is None, finding.what
