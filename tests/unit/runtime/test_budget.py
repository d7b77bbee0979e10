"""How much a clip may take, and which plan fits into that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sana_rt.errors import DeviceMemoryError, UsageError
from sana_rt.runtime.budget import Budget, bytes_in
from sana_rt.runtime.memory import MemoryPlan, Phase, Region

PLAN = MemoryPlan(
    "plans",
    (
        Phase("text encoder", {"text_encoder": 5000}, (), 10),
        Phase("image encoder", {"vae_encoder": 100}, (), 200),
        Phase(
            "transformer", {"block_00": 3000}, (Region("tokens", "tokens", "uint8", (900,)),), 40
        ),
        Phase("decoder", {"vae_decoder": 200}, (Region("cache", "caches", "uint8", (3700,)),), 20),
    ),
    {},
)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("8GB", 8_000_000_000),
        ("8 GiB", 8 << 30),
        ("7.5gib", 15 << 29),
        ("500MB", 500_000_000),
        ("64kib", 65_536),
        ("1TB", 10**12),
        ("12B", 12),
        (123, 123),
    ],
)
def test_sizes(size: int | str, expected: int) -> None:
    assert bytes_in(size) == expected


@pytest.mark.parametrize(
    "size",
    ["", "8", "8G", "-8GB", "0GB", "0.1B", "GB", "8 GB of memory", "1e3GB", 0, -1, True, 1.5],
)
def test_what_is_not_a_size(size: int | str) -> None:
    with pytest.raises(UsageError, match=r"is not a size of memory[^$]*such as 8GB"):
        bytes_in(size)


@pytest.mark.parametrize(
    ("allowed", "apart"), [(13_100, 0), (13_099, 1), (8_100, 1), (8_099, 2), (7_840, 2), (7_839, 3)]
)
def test_as_much_as_fits_is_loaded_at_the_same_time(allowed: int, apart: int) -> None:
    """First the text encoder is loaded apart, then the image encoder, then the transformer."""
    assert Budget(None, limit=allowed).fit(PLAN) == replace(PLAN, apart=apart)
    assert Budget(allowed).fit(PLAN) == replace(PLAN, apart=apart)


def test_the_smaller_of_what_is_free_and_what_is_allowed_counts() -> None:
    """What the session holds already can be used again."""
    assert Budget(100, held=20).bytes == 120
    assert Budget(100, held=20, limit=110).bytes == 110
    assert Budget(100, held=20, limit=130).bytes == 120
    assert Budget(None).bytes is None
    assert Budget(None).fit(PLAN) == PLAN
    Budget(None).check(PLAN)


def test_a_text_encoder_that_is_kept_is_never_apart() -> None:
    assert Budget(5010).fit(PLAN, together=True) == PLAN
    with pytest.raises(DeviceMemoryError, match=r"(?s)13,100 bytes .*do not keep the text encoder"):
        Budget(5010).check(PLAN)


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    """The smallest plan, which phase needs it, what there is, and what would help."""
    smallest = Budget(5009).fit(PLAN)
    assert smallest.apart == 3
    Budget(5010).check(smallest)
    with pytest.raises(
        DeviceMemoryError,
        match=r"(?s)needs 5,010 bytes on plans for its text encoder, of which 5,009 are free:"
        r".*\nneeded  .*variant with smaller weights",
    ):
        Budget(5009).check(smallest)
    with pytest.raises(
        DeviceMemoryError,
        match=r"(?s)of which 5,009 may be used \(--max-memory\).*allow 5,010 bytes or more",
    ):
        Budget(9000, limit=5009).check(smallest)


def test_a_clip_whose_buffers_do_not_fit_should_be_smaller() -> None:
    plan = replace(PLAN, phases=PLAN.phases[3:])
    with pytest.raises(DeviceMemoryError, match=r"(?s)for its decoder.*smaller or shorter clip"):
        Budget(3000).check(plan)
