"""``sana-rt list``: every name that an option takes."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sana_rt.cli import cli
from sana_rt.engines import cards, workloads
from sana_rt.model_spec import PRESETS
from sana_rt.quantize import recipe


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("recipes", recipe.names()),
        ("models", list(PRESETS)),
        ("cards", list(cards.CARDS)),
        ("workloads", workloads.names()),
    ],
)
def test_all_names_are_listed(what: str, names: list[str]) -> None:
    shown = CliRunner().invoke(cli, ["list", what])
    assert shown.exit_code == 0, shown.output
    rows = shown.stdout.splitlines()[-len(names) :]
    assert [row.split()[0] for row in rows] == names
    listed = json.loads(CliRunner().invoke(cli, ["list", what, "--json"]).stdout)
    assert [next(iter(each.values())) for each in listed] == names


def test_what_can_be_listed_is_said() -> None:
    result = CliRunner().invoke(cli, ["list", "plans"])
    assert result.exit_code == 2
    assert "'recipes', 'models', 'cards', 'workloads'" in result.stderr
