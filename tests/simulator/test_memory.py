"""Memory of the simulated device."""

from __future__ import annotations

from cuda.bindings import driver
from tests.simulator.simulated_cuda import Device


def test_it_is_the_simulated_driver(device: Device) -> None:
    assert driver.cuInit(0) == (driver.CUresult.CUDA_SUCCESS,)
    assert device.report().calls["cuInit"] == 1
