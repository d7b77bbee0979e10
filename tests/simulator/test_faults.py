"""Every fault at every position of a short run: a typed error, no leak, no hang, and on it goes.

The suite takes a few positions of each kind, spread over the run; ``make simulate`` takes all.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings.driver import CUresult
from numpy.typing import NDArray
from tests.simulator.clock import Clock
from tests.simulator.extent import ALL
from tests.simulator.simulated_cuda import Device, Report

from sana_rt.errors import BackendError, DeviceLostError, DeviceMemoryError
from sana_rt.runtime.backends import cuda_device
from sana_rt.runtime.backends.arena import Arena
from sana_rt.runtime.backends.cuda_graph import NotCapturedWarning
from sana_rt.runtime.session import Session

Clip = NDArray[np.uint8]
#: Positions of a kind of fault that are tried, if not all of them.
TRIED = 6
#: Seconds of the test's clock after which the backend gives a device up.
TIMEOUT = 1.0
#: Calls that give something back: where they fail, it is the driver that leaks.
GIVE_BACK = (
    *("cuMemFree", "cuMemFreeHost", "cuEventDestroy", "cuStreamDestroy"),
    *("cuGraphDestroy", "cuGraphExecDestroy", "cuDevicePrimaryCtxRelease"),
)
#: Calls that cannot fail as the others do.
ALWAYS = ("cuInit", "cuCtxSetCurrent", "cuDriverGetVersion", "cuGetErrorName")
#: Calls that a group names.
GROUPED = (
    *("cuMemAlloc", "cuMemAllocHost", "cuMemcpyAsync", "cuMemsetD8Async"),
    *("cuGraphLaunch", "simLaunch"),
)
CAPTURE = ("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cuda_device, "time", clock)
    return clock


def play(bundle: Path) -> Clip:
    with Session.open(
        bundle, variant="fp32", backend="tensorrt", threads=1, timeout=TIMEOUT
    ) as session:
        return clip(session)


def clip(session: Session) -> Clip:
    request = session.request(prompt="a red circle", num_inference_steps=3)
    return np.concatenate(list(session.generate(request)))


@functools.cache
def reference(bundle: Path) -> tuple[Clip, Report]:
    """The frames of a run in which nothing fails, and what it asks of the device."""
    from tests.simulator.simulated_cuda import device

    device.mark()
    before = device.report().executed
    frames = play(bundle)
    report = device.report()
    report.calls["work"] = report.executed - before
    return frames, report


def groups(calls: dict[str, int]) -> dict[str, int]:
    """How often each kind of call is made; a kind is a position that a fault can name."""
    copies = sum(count for name, count in calls.items() if name.startswith("cuMemcpy"))
    clears = sum(count for name, count in calls.items() if name.startswith("cuMemset"))
    return {
        "allocation": calls["cuMemAlloc"] + calls.get("cuMemAllocHost", 0),
        "launch": calls["simLaunch"] + calls["cuGraphLaunch"],
        "copy": copies,
        "clear": clears,
    }


def spread(count: int) -> list[int]:
    """Positions from the first to the last; what they are of is told by the test's output."""
    tried = set(range(1, count + 1))
    if not ALL and count > TRIED:
        tried = {round(1 + index * (count - 1) / (TRIED - 1)) for index in range(TRIED)}
    sys.stdout.write(f"{len(tried)} of {count} positions\n")
    return sorted(tried)


def recovers(bundle: Path, device: Device, fault: Callable[[], None], error: type) -> None:
    """A fault stops the clip with ``error`` or costs a note; then the same session plays it.

    Closing a session raises nothing.
    """
    expected, _ = reference(bundle)
    before = met(device)
    fault()
    try:
        session = Session.open(bundle, variant="fp32", backend="tensorrt", threads=1)
    except error:
        np.testing.assert_array_equal(play(bundle), expected)
        return
    with session, warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            frames = clip(session)
        except error:
            pass
        else:
            assert [note.category for note in notes] in ([], [NotCapturedWarning])
            np.testing.assert_array_equal(frames, expected)
        if was_met := met(device) > before:
            np.testing.assert_array_equal(clip(session), expected)
    if not was_met:  # but when the session was closed
        np.testing.assert_array_equal(play(bundle), expected)
    assert met(device) == before + 1
    assert device.report().violations == []


def met(device: Device) -> int:
    """How many faults calls have met."""
    return sum("as the test demanded" in error for error in device.report().errors)


def ends(bundle: Path, device: Device, clock: Clock, fault: Callable[[], None]) -> None:
    """A fault ends the device, if not after the last frame; a new process plays on."""
    expected, _ = reference(bundle)
    clock.restart()
    fault()
    try:
        frames = play(bundle)
    except (DeviceLostError, BackendError):
        pass
    else:
        np.testing.assert_array_equal(frames, expected)
    device.release()
    assert device.report().violations == []
    device.reset()
    np.testing.assert_array_equal(play(bundle), expected)


@pytest.mark.parametrize("kind", ["allocation", "launch", "copy", "clear"])
def test_a_call_that_fails(kind: str, plans: Path, device: Device) -> None:
    _, report = reference(plans)
    result = CUresult.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
    error: type = BackendError
    if kind == "allocation":
        result, error = CUresult.CUDA_ERROR_OUT_OF_MEMORY, DeviceMemoryError
    for nth in spread(groups(report.calls)[kind]):
        recovers(plans, device, lambda nth=nth: device.fail(kind, nth, result), error)  # type: ignore[misc]
        assert device.report().leaks == [], f"{kind} {nth}"


def test_an_arena_that_cannot_grow(plans: Path, device: Device) -> None:
    """The next that asks for one needs less than those that have had one."""
    reserve, nth = Arena.reserve, list[int]()

    def watch(self: Arena, nbytes: int) -> None:
        if nbytes > self.nbytes:
            nth.append(device.report().allocations + 1)
        reserve(self, nbytes)

    device.mark()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arena, "reserve", watch)
        play(plans)
    assert len(nth) > 1
    for each in nth:
        fault = functools.partial(device.fail, "allocation", each)
        recovers(plans, device, fault, DeviceMemoryError)


def test_any_other_call_that_fails(plans: Path, device: Device) -> None:
    _, report = reference(plans)
    skipped = (*GIVE_BACK, *ALWAYS, *GROUPED, "work", "implicit synchronization")
    names = [name for name in report.calls if name not in skipped]
    assert set(CAPTURE) <= set(names)
    for name in names:
        for nth in spread(report.calls[name])[:: 1 if ALL else 5]:
            recovers(plans, device, lambda: device.fail(name, nth, 801), BackendError)  # noqa: B023
            assert device.report().leaks == [], f"{name} {nth}"


def test_an_error_that_stays(plans: Path, device: Device, clock: Clock) -> None:
    """From any call on, everything fails."""
    _, report = reference(plans)
    counted = [name for name in report.calls if name not in (*ALWAYS, "work")]
    total = sum(report.calls[name] for name in counted)
    lost = CUresult.CUDA_ERROR_ECC_UNCORRECTABLE
    for nth in spread(total - sum(report.calls.get(name, 0) for name in GIVE_BACK)):
        ends(plans, device, clock, lambda nth=nth: device.fail("*", nth, lost, sticky=True))  # type: ignore[misc]


def test_work_that_fails_on_the_device(plans: Path, device: Device, clock: Clock) -> None:
    _, report = reference(plans)
    for nth in spread(report.calls["work"]):
        ends(plans, device, clock, lambda nth=nth: device.fail_work(nth))  # type: ignore[misc]


def test_work_that_never_ends(plans: Path, device: Device, clock: Clock) -> None:
    _, report = reference(plans)
    for nth in spread(report.calls["work"]):
        ends(plans, device, clock, lambda nth=nth: device.hang(nth))  # type: ignore[misc]
