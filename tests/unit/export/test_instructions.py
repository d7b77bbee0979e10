"""Choosing the instruction a bundle carries."""

from __future__ import annotations

import pytest

from sana_rt.errors import UsageError
from sana_rt.export.instructions import DIFFUSERS, ORIGINAL, instruction


@pytest.mark.parametrize(
    ("name", "text"), [("original", ORIGINAL), ("diffusers", DIFFUSERS), ("none", "")]
)
def test_names(name, text):
    assert instruction(name) == text


@pytest.mark.parametrize(
    ("content", "text"),
    [("Prompt: ", "Prompt: "), ("é\nPrompt: \n", "é\nPrompt: "), ("\n\n", "\n"), ("", "")],
)
def test_a_file_is_taken_as_it_is_but_for_its_last_newline(tmp_path, content, text):
    path = tmp_path / "instruction.txt"
    path.write_text(content, encoding="utf-8")
    assert instruction(str(path)) == text


def test_neither_a_name_nor_a_file(tmp_path):
    with pytest.raises(UsageError, match="one of original, diffusers, none, or a text file"):
        instruction("orignal")
    with pytest.raises(UsageError, match="cannot be read"):
        instruction(str(tmp_path))


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "instruction.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="text file in UTF-8"):
        instruction(str(path))
