# ruff: noqa: ARG002, N802 (the stand-in's names and arguments are NVML's)
"""Readings of a card, with a stand-in for NVML whose names are those of the real package."""

from __future__ import annotations

import sys
import time

import pytest

from sana_rt.benchmarks.speed.card import Card, CardIdentity, summary
from sana_rt.benchmarks.spread import Spread

pynvml = pytest.importorskip("pynvml")


class Nvml:
    """A card at 2,400 MHz that does not tell its power."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        assert index == 0
        return "handle"

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> tuple[int, int]:
        return 12, 0

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "NVIDIA GeForce RTX 5090"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "590.10"

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 575_000

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {pynvml.NVML_CLOCK_SM: 2400, pynvml.NVML_CLOCK_MEM: 14001}[kind]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        raise pynvml.NVMLError_NotSupported

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 61


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())  # type: ignore[arg-type]
    return Card()


def test_the_stand_in_has_no_name_that_nvml_has_not() -> None:
    assert [
        name for name in vars(Nvml) if "nvml" in name.lower() and not hasattr(pynvml, name)
    ] == []


def test_a_card_says_what_it_is(card: Card) -> None:
    assert card.identity() == CardIdentity("NVIDIA GeForce RTX 5090", "590.10", "12.0", 575.0)


def test_it_is_read_while_something_else_goes_on(card: Card) -> None:
    with card.watched() as readings:
        time.sleep(0.5)
    assert len(readings) >= 2
    counted = len(readings)
    time.sleep(0.3)
    assert len(readings) == counted, "nothing is read behind the block"
    found = summary(readings)
    assert found is not None
    assert found.sm_clock_mhz == Spread(2400, 2400, 2400, 2400, 2400, counted)
    assert found.temperature_celsius is not None
    assert found.power_watts is None, "not told, and so not made up"


def test_without_nvml_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    card = Card()
    assert card.identity() is None
    assert "nvidia-ml-py" in card.why_not
    with card.watched() as readings:
        pass
    assert summary(readings) is None


def test_a_machine_without_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Nvml) -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(Nvml, "nvmlInit", refuse)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())  # type: ignore[arg-type]
    card = Card()
    assert card.identity() is None
    assert card.why_not == "NVML Shared Library Not Found"
