"""The Python that the documents show runs, with the public interface only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import sana_rt
from sana_rt.runtime.images import write_png
from sana_rt.runtime.player import Player

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/python.md", "docs/streaming.md")
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture
def folder(
    small_bundle: Path, causal_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Where the files are that examples name."""
    for name, bundle in {
        "out/bundle": small_bundle,
        "demo/bundle": small_bundle,
        "out/causal": causal_bundle,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(bundle)
    write_png(tmp_path / "first.png", np.full((40, 60, 3), 128, np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run_in_order(
    page: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    examples = EXAMPLE.findall((ROOT / page).read_text())
    assert examples
    for example in examples:
        exec(compile(example, page, "exec"), names)
        assert capsys.readouterr().out or "print" not in example
        _check_public(example)


def _check_public(example: str) -> None:
    for node in ast.walk(ast.parse(example)):
        if isinstance(node, ast.Import):
            assert [alias.name for alias in node.names] == ["sana_rt"]
        assert not isinstance(node, ast.ImportFrom)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sana_rt":
            assert node.attr in sana_rt.__all__


def test_the_page_describes_all_that_is_public() -> None:
    page = (ROOT / "docs/python.md").read_text()
    names = [*sana_rt.__all__, *(name for name in vars(Player) if not name.startswith("_"))]
    assert [name for name in names if not re.search(rf"[`.]{name}\b", page)] == ["__version__"]
    fields = sana_rt.Request.__struct_fields__
    assert [name for name in fields if name != "prompt" and f"`{name}`" not in page] == []
    named = set(re.findall(r"`(\w+Error)`", page))
    assert [name for name in named if not hasattr(sana_rt.errors, name)] == []


def test_the_canceled_example_is_canceled(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = EXAMPLE.findall((ROOT / "docs/python.md").read_text())
    (example,) = [one for one in examples if "CanceledError" in one]
    with sana_rt.open("out/bundle", threads=1) as player:
        exec(example, {"sana_rt": sana_rt, "player": player})
    assert "was canceled (denoise: 3 of" in capsys.readouterr().out
