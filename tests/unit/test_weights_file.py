"""Weights on pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from sana_rt import weights_file


def test_tensors_begin_on_pages_and_are_found_by_their_extents(tmp_path: Path) -> None:
    tensors = [b"a", b"bc" * 4096, bytes(4096), b"d"]
    with weights_file.beside(tmp_path / "block_00.onnx") as writer:
        extents = [writer.append(each) for each in tensors]
    path = tmp_path / "block_00.weights"
    assert writer.files == (path,)
    assert [each.offset for each in extents] == [0, 4096, 12288, 16384]
    data = path.read_bytes()
    assert [data[each.offset :][: each.length] for each in extents] == tensors
    assert {each.location for each in extents} == {"block_00.weights"}


def test_a_graph_without_weights_has_no_file(tmp_path: Path) -> None:
    with weights_file.beside(tmp_path / "rope.onnx") as writer:
        pass
    assert writer.files == ()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    def stopped() -> None:
        with weights_file.beside(tmp_path / "block_00.onnx") as writer:
            writer.append(bytes(10))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stopped()
    assert list(tmp_path.iterdir()) == []
