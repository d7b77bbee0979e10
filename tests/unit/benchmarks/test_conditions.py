"""What a figure depends on, and how two of them differ."""

from __future__ import annotations

import numpy as np

from sana_rt import machine
from sana_rt.benchmarks.conditions import conditions, differences


def test_conditions_name_what_a_figure_depends_on() -> None:
    found = conditions(["numpy", "no-such-package"], threads=3)
    assert found["threads"] == 3
    assert found["numpy"] == np.__version__
    assert found["no-such-package"] is None
    assert found["processor"] == machine.processor()
    assert found["instruction_set"] == machine.instruction_set()
    assert found["cores"] == machine.usable_cpus()


def test_differences_are_by_name_with_both_values() -> None:
    one = {"numpy": "2.4", "threads": 1, "torch": "2.13"}
    other = {"numpy": "2.4", "threads": 2, "card": "H200"}
    assert differences(one, other) == {
        "threads": (1, 2),
        "torch": ("2.13", None),
        "card": (None, "H200"),
    }
