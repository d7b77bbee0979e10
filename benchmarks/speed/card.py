"""The card in this machine, as NVIDIA's management library (NVML) reads it while others work."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sana_rt.benchmarks.spread import Spread
from sana_rt.model_spec import Frozen

_INTERVAL: Final = 0.2  # seconds between two readings

#: Clocks of multiprocessors and memory in MHz, power in watts, temperature in degrees Celsius;
#: None is what a card does not tell.
Reading = tuple[float | None, float | None, float | None, float | None]


class CardIdentity(Frozen, frozen=True):
    """What a card is, and the driver that it runs with."""

    name: str
    driver: str
    compute_capability: str
    power_limit_watts: float | None


class Readings(Frozen, frozen=True):
    """What was read of a card while a side played; None where it does not tell."""

    sm_clock_mhz: Spread | None
    memory_clock_mhz: Spread | None
    power_watts: Spread | None
    temperature_celsius: Spread | None


class Card:
    """The first card; without NVML, its package or a card nothing is read."""

    def __init__(self) -> None:
        try:
            import pynvml  # noqa: PLC0415 - where it is not installed nothing is read
        except ModuleNotFoundError:
            self._nvml: Any = None
            self.why_not = "the package nvidia-ml-py is not installed"
            return
        self._nvml, self.why_not = pynvml, ""
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        except pynvml.NVMLError as error:
            self._nvml, self.why_not = None, str(error)

    def identity(self) -> CardIdentity | None:
        """What it is, or None if nothing is read."""
        nvml = self._nvml
        if nvml is None:
            return None
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(self._handle)
        limit = self._told(nvml.nvmlDeviceGetEnforcedPowerLimit)
        return CardIdentity(
            name=nvml.nvmlDeviceGetName(self._handle),
            driver=nvml.nvmlSystemGetDriverVersion(),
            compute_capability=f"{major}.{minor}",
            power_limit_watts=None if limit is None else limit / 1e3,
        )

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[Reading]]:
        """Read it every 0.2 s while the block runs; the readings are in the list."""
        found: list[Reading] = []
        if self._nvml is None:
            yield found
            return
        ended = threading.Event()

        def watch() -> None:
            found.append(self._read())
            while not ended.wait(_INTERVAL):
                found.append(self._read())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield found
        finally:
            ended.set()
            thread.join()

    def _read(self) -> Reading:
        nvml = self._nvml
        milliwatts = self._told(nvml.nvmlDeviceGetPowerUsage)
        return (
            self._told(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            self._told(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            None if milliwatts is None else milliwatts / 1e3,
            self._told(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        )

    def _told(self, function: Callable[..., Any], *arguments: Any) -> float | None:
        """What the card answers, or None where it does not."""
        try:
            return float(function(self._handle, *arguments))
        except self._nvml.NVMLError:
            return None


def summary(readings: Sequence[Reading]) -> Readings | None:
    """The spreads of what was read, or None if nothing was."""
    if not readings:
        return None
    columns = (
        [each for each in column if each is not None] for column in zip(*readings, strict=True)
    )
    return Readings(*(Spread.of(column) if column else None for column in columns))
