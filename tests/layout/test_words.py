"""What no file of the repository says: places on somebody's machine, unfinished work."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).relative_to(ROOT)
TRUST = ("-c", f"safe.directory={ROOT}")  # whoever owns it and runs this
FORBIDDEN = {
    "a place on one machine": r"(?<![\w.])/(?:work|root|home|Users|opt/py\w*)/\w",
    "unfinished work": r"\b(?:TODO|FIXME|XXX|HACK)\b",
    "a ticket instead of the reason": r"\b[Ii]ssue #?\d",
    "a package index": r"pypi\.org|pythonhosted|devpi|artifactory",
    "who wrote it": r"\b(?:Claude|Anthropic|ChatGPT|Copilot|LLM agent|AI assistant|the agent)\b",
    "an unfinished merge": r"^(?:<{7}|>{7}) ",
}


def _texts() -> dict[str, str]:
    command = ["git", *TRUST, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    texts = {}
    for name in listed.split("\0"):
        path = ROOT / name
        if not name or path.is_symlink() or not path.is_file() or Path(name) == HERE:
            continue
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # data
    return texts


TEXTS = _texts()


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_contains(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for name, text in TEXTS.items()
        for match in pattern.finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "example"),
    [
        ("a place on one machine", "see /ho" + "me/ann/x"),
        ("unfinished work", "TO" + "DO: later"),
        ("a ticket instead of the reason", "as issue" + " 12 says"),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, example: str) -> None:
    assert re.search(FORBIDDEN[what], example)


def test_text_ends_with_one_newline() -> None:
    suffixes = (".md", ".toml", "Makefile")  # the linter looks at Python
    assert [
        name
        for name, text in TEXTS.items()
        if name.endswith(suffixes) and text and (not text.endswith("\n") or text.endswith("\n\n"))
    ] == []
