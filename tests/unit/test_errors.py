"""Errors keep their parts and say them in order."""

from __future__ import annotations

from sana_rt.errors import SanaRTError, some


def test_parts_are_kept_and_said_in_order() -> None:
    error = SanaRTError("The cat is out.", expected="a cat in.", remedy="open the door.")
    assert (error.happened, error.expected, error.remedy) == (
        "The cat is out.",
        "a cat in.",
        "open the door.",
    )
    assert str(error).splitlines() == [
        "The cat is out.",
        "Expected: a cat in.",
        "To fix: open the door.",
    ]


def test_parts_that_are_not_given_leave_no_line() -> None:
    assert str(SanaRTError("The cat is out.")) == "The cat is out."


def test_long_lists_are_cut_and_counted() -> None:
    names = [f"block_{index}" for index in range(336)]
    assert some(names[:2]) == "block_0, block_1"
    assert some(names[:10]).endswith("block_9")
    assert some(names).endswith("block_8, block_9, ... and 326 more")
