"""tests/data/native/vectors.json, which the tests in C++ read, is what Python computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DATA = Path(__file__).parents[1] / "data/native"


def test_vectors_are_what_their_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_vectors", DATA / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert make.vectors() == (DATA / "vectors.json").read_text(encoding="utf-8")
