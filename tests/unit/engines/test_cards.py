"""The table of cards: limits with a source, and targets that agree with them."""

from __future__ import annotations

import pytest

from sana_rt.engines import cards
from sana_rt.engines.cards import CARDS, CURRENT, TARGETS
from sana_rt.errors import UsageError

#: Every card of the table multiplies in these, plans in neither.
IN_NO_PLAN = {"float16", "float32"}


@pytest.mark.parametrize("name", CARDS)
def test_cards_have_limits_and_sources(name: str) -> None:
    card = cards.card(name)
    assert card.peaks["bfloat16"] > card.peaks["float32"] > 1e13
    assert 1e11 < card.bandwidth < 1e13
    assert card.source.document
    assert card.source.url.startswith("https://")
    # What computes in fewer bits is faster, in powers of two but for Blackwell's FP4.
    if "float8_e4m3fn" in card.peaks:
        assert card.peaks["float8_e4m3fn"] == pytest.approx(2 * card.peaks["bfloat16"], 1e-3)


def test_fp4_is_for_cards_of_compute_capability_12() -> None:
    fp4 = {card.compute_capability for card in CARDS.values() if "float4_e2m1" in card.peaks}
    assert fp4 == {"12.0"}
    assert {name for name, target in TARGETS.items() if "float4_e2m1" in target.dtypes} == {
        "sm120",
        CURRENT,
    }


def test_a_target_multiplies_in_what_its_cards_have_peaks_for() -> None:
    for card in CARDS.values():
        target = cards.target_of(card.compute_capability)
        if target is not None:
            assert set(target.dtypes) == set(card.peaks) - IN_NO_PLAN


def test_a_target_is_bounded_by_one_of_its_cards() -> None:
    for name in ("sm120", "sm89", "sm86"):
        assert cards.card_of(name).compute_capability == TARGETS[name].compute_capability
    for name in ("sm80", CURRENT, "sm999"):
        with pytest.raises(
            UsageError, match=r"does not say which card it is\.\n.*--device with .*rtx5090"
        ):
            cards.card_of(name)


def test_the_target_of_a_compute_capability() -> None:
    assert cards.target_of("12.0") is TARGETS["sm120"]
    assert cards.target_of("9.0") is None


def test_names_that_do_not_exist_are_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="rtx5090"):
        cards.card("rtx9999")
