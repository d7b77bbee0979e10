"""What the documents point at is there: files, modules, commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from sana_rt.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md") for path in ROOT.glob(pattern) if path.is_file()
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:tests|export|quantize|engines|runtime|benchmarks|src|docs)/[\w./-]*\w)`")
COMMAND = re.compile(r"`?sana-rt (?!\[)([a-z]+)\b")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_points_at_is_there(document: Path) -> None:
    text = document.read_text()
    links = [target for target in LINK.findall(text) if not (document.parent / target).exists()]
    paths = [target for target in PATH.findall(text) if not (ROOT / target).exists()]
    commands = [
        name
        for line in re.findall(r"`sana-rt [^`]*`|^\s*(?:\$ )?sana-rt .*$", text, flags=re.MULTILINE)
        for name in COMMAND.findall(line)
        if name not in COMMANDS
    ]
    assert {"links": links, "paths": paths, "commands": commands} == {
        "links": [],
        "paths": [],
        "commands": [],
    }


def test_code_that_the_numerics_page_names_is_there() -> None:
    page = (ROOT / "docs/numerics.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| **")]
    assert [row for row in rows if len(row) != 3] == []
    source = "\n".join(
        path.read_text()
        for folder in ("export", "runtime", "src/sana_rt")
        for path in (ROOT / folder).rglob("*.py")
    )
    names = {name for _, code, _ in rows for name in re.findall(r"`(\w+)`", code)}
    assert [
        name
        for name in sorted(names)
        if not re.search(rf"(?:def|class) {name}\b|\b{name}:? ", source)
    ] == []
    assert [row[0] for row in rows if "`tests/" not in row[2]] == []


def test_every_dependency_is_in_the_notice() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    named = {re.split(r"[<>=~!\[; ]", requirement)[0] for group in groups for requirement in group}
    of_packages, _, _ = (ROOT / "NOTICE").read_text().partition("Libraries that the C library")
    listed = set(re.findall(r"^    ([\w-]+) ", of_packages, flags=re.MULTILINE))
    assert named == listed
