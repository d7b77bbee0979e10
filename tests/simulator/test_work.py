"""Work of the simulated device happens later, in every order that CUDA allows, and no other."""

from __future__ import annotations

import ctypes
import functools
import threading

import numpy as np
import pytest
from cuda.bindings import driver
from cuda.bindings.driver import CUresult
from tests.simulator.card import Card, fill, ok, peek
from tests.simulator.simulated_cuda import Device

SEEDS = range(20)
POISON = 0xFF


def test_fresh_memory_is_not_a_number(card: Card) -> None:
    values = card.read(card.memory()).view(np.float32)
    assert np.isnan(values).all()
    assert (peek(card.pinned()) == POISON).all()


def test_nothing_happens_before_somebody_waits(card: Card, device: Device) -> None:
    memory, pinned = card.memory(), card.pinned()
    ok(card.clear(memory, 7))
    ok(card.copy(pinned, memory))
    assert device.report().pending == 2
    assert (peek(pinned) == POISON).all(), "the copy has not been made yet"
    ok(driver.cuStreamSynchronize(card.stream))
    assert (peek(pinned) == 7).all()
    assert device.report().pending == 0


def test_a_copy_reads_pinned_memory_when_its_turn_comes(card: Card, device: Device) -> None:
    memory, pinned = card.memory(), card.pinned()
    fill(pinned, 1)
    ok(card.copy(memory, pinned))
    fill(pinned, 2)
    assert (card.read(memory) == 2).all()
    assert "the host wrote to pinned memory" in device.forgive()[0]


def test_a_copy_reads_other_host_memory_at_once(card: Card) -> None:
    memory, host = card.memory(), np.ones(64, np.uint8)
    ok(card.copy(memory, host.ctypes.data))
    host[:] = 2
    assert (card.read(memory) == 1).all()


def test_a_copy_to_other_host_memory_has_happened(card: Card) -> None:
    memory, host = card.memory(), np.zeros(64, np.uint8)
    ok(card.clear(memory, 3))
    ok(card.copy(host.ctypes.data, memory))
    assert (host == 3).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stream_keeps_its_order(seed: int, device: Device) -> None:
    device.reset(seed=seed)
    card = Card()
    memory, other = card.memory(), card.memory()
    for value in range(10):
        ok(card.clear(memory, value))
        ok(card.copy(other, memory))
    assert (card.read(other) == 9).all()
    card.close()


def test_streams_take_their_turns_in_any_order(device: Device) -> None:
    """Two streams count how often which is first; an order is possible, so it happens."""
    firsts = set()
    for seed in SEEDS:
        device.reset(seed=seed)
        card = Card()
        order: list[int] = []
        for stream in (card.stream, card.new_stream()):
            kernel = device.kernel(functools.partial(order.append, int(stream)))
            assert device.launch(int(stream), "kernel", kernel, [])
        ok(driver.cuCtxSynchronize())
        firsts.add(order[0] == int(card.stream))
        card.close()
    assert firsts == {True, False}


@pytest.mark.parametrize("seed", SEEDS)
def test_an_event_orders_streams(seed: int, device: Device) -> None:
    device.reset(seed=seed)
    card = Card()
    memory, other, event = card.memory(), card.new_stream(), card.event()
    ok(card.clear(memory, 1, other))
    ok(driver.cuEventRecord(event, other))
    ok(driver.cuStreamWaitEvent(card.stream, event, 0))
    ok(card.clear(memory, 2))
    assert (card.read(memory) == 2).all()
    card.close()


def test_streams_without_an_order_must_not_touch_the_same_bytes(card: Card, device: Device) -> None:
    memory, other = card.memory(), card.new_stream()
    ok(card.clear(memory, 1, other))
    ok(card.clear(memory, 2))
    assert "nothing orders them" in device.forgive()[0]


def test_streams_may_read_the_same_bytes(card: Card, device: Device) -> None:
    memory, other = card.memory(), card.new_stream()
    ok(card.clear(memory, 1))
    ok(driver.cuStreamSynchronize(card.stream))
    ok(card.copy(card.memory(), memory))
    ok(card.copy(card.memory(), memory, stream=other))


def test_the_default_stream_waits_for_blocking_streams_only(card: Card, device: Device) -> None:
    blocking, memory = card.new_stream(0), card.memory()
    ok(card.clear(memory, 1, blocking))
    ok(driver.cuMemsetD8(memory, 2, 64))
    ok(card.clear(memory, 3, blocking))
    assert device.report().violations == []
    ok(card.clear(memory, 4))
    assert all("nothing orders them" in violation for violation in device.forgive())
    assert device.report().pending == 4


def test_an_event_is_ready_when_its_stream_has_come_to_it(card: Card) -> None:
    event, memory = card.event(), card.memory()
    assert driver.cuEventQuery(event) == (CUresult.CUDA_SUCCESS,), "it was never recorded"
    ok(card.clear(memory, 1))
    ok(driver.cuEventRecord(event, card.stream))
    assert driver.cuEventQuery(event) == (CUresult.CUDA_ERROR_NOT_READY,)
    assert driver.cuEventQuery(event) == (CUresult.CUDA_SUCCESS,), "asking gives it time"


def test_events_measure_time(card: Card) -> None:
    start, end = card.event(0), card.event(0)
    ok(driver.cuEventRecord(start, card.stream))
    ok(driver.cuEventRecord(end, card.stream))
    result, _ = driver.cuEventElapsedTime(start, end)
    assert result == CUresult.CUDA_ERROR_NOT_READY
    ok(driver.cuEventSynchronize(end))
    assert 0 <= ok(driver.cuEventElapsedTime(start, end)) < 1000


def test_host_functions_run_in_their_turn_and_may_write(card: Card, device: Device) -> None:
    memory, pinned, said = card.memory(), card.pinned(), list[int]()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def write(_: int) -> None:
        said.append(int(peek(pinned)[0]))
        fill(pinned, 8)

    ok(card.clear(memory, 5))
    ok(card.copy(pinned, memory))
    pointer = ctypes.cast(write, ctypes.c_void_p).value
    ok(driver.cuLaunchHostFunc(card.stream, driver.CUhostFn(pointer), 0))
    ok(card.copy(memory, pinned))
    assert said == []
    assert (card.read(memory) == 8).all()
    assert said == [5]
    assert device.report().violations == []


def test_memory_is_limited(device: Device) -> None:
    device.reset(memory=1000)
    card = Card()
    memory = card.memory(600)
    assert driver.cuMemAlloc(401)[0] == CUresult.CUDA_ERROR_OUT_OF_MEMORY
    assert ok(driver.cuMemGetInfo()) == (400, 1000)
    ok(driver.cuMemFree(memory))
    card.forget(memory)
    card.memory(1000)
    card.close()


def test_freeing_memory_waits_for_who_uses_it(card: Card, device: Device) -> None:
    memory, pinned = ok(driver.cuMemAlloc(64)), card.pinned()
    ok(card.clear(memory, 6))
    ok(card.copy(pinned, memory))
    ok(driver.cuMemFree(memory))
    assert (peek(pinned) == 6).all()
    assert device.report().calls["implicit synchronization"] == 1


def test_what_is_left_is_listed(device: Device) -> None:
    card = Card()
    memory, event = card.memory(48), card.event()
    assert device.report().leaks == [
        *("device block 1, 48 bytes", "1 streams", "1 events", "1 contexts"),
    ]
    assert (memory, event) != (0, 0)
    card.close()
    assert device.report().leaks == []


def test_calls_and_bytes_are_counted_from_a_mark_on(card: Card, device: Device) -> None:
    memory, pinned = card.memory(), card.pinned()
    device.mark()
    fill(pinned, 1)
    ok(card.copy(memory, pinned))
    ok(driver.cuStreamSynchronize(card.stream))
    report = device.report()
    assert report.calls == {"cuMemcpyAsync": 1, "cuStreamSynchronize": 1}
    assert report.bytes == {"pinned to device": 64}
    assert report.device_bytes == report.peak_device_bytes == 64


# --- Faults ---


def test_the_nth_call_fails(card: Card, device: Device) -> None:
    device.fail("allocation", 2)
    card.memory()
    assert driver.cuMemAllocHost(64)[0] == CUresult.CUDA_ERROR_OUT_OF_MEMORY
    card.pinned()


def test_a_sticky_error_is_the_answer_to_every_later_call(card: Card, device: Device) -> None:
    memory = card.memory()
    device.fail("cuMemsetD8Async", 1, CUresult.CUDA_ERROR_ECC_UNCORRECTABLE, sticky=True)
    for _ in range(2):
        assert card.clear(memory, 1) == (CUresult.CUDA_ERROR_ECC_UNCORRECTABLE,)
    assert driver.cuMemFree(memory) == (CUresult.CUDA_ERROR_ECC_UNCORRECTABLE,)


def test_work_that_fails_is_told_by_a_later_call(card: Card, device: Device) -> None:
    memory = card.memory()
    device.fail_work(2, CUresult.CUDA_ERROR_LAUNCH_FAILED)
    for value in range(3):
        ok(card.clear(memory, value))
    assert driver.cuStreamSynchronize(card.stream) == (CUresult.CUDA_ERROR_LAUNCH_FAILED,)
    assert driver.cuMemAlloc(64)[0] == CUresult.CUDA_ERROR_LAUNCH_FAILED


def test_hung_work_is_never_ready(card: Card, device: Device) -> None:
    memory = card.memory()
    device.hang(1)
    ok(card.clear(memory, 1))
    for _ in range(5):
        assert driver.cuStreamQuery(card.stream) == (CUresult.CUDA_ERROR_NOT_READY,)
    device.release()
    assert (card.read(memory) == 1).all()


def test_a_call_waits_for_hung_work_until_it_is_released(card: Card, device: Device) -> None:
    memory = card.memory()
    device.hang(1)
    ok(card.clear(memory, 1))
    timer = threading.Timer(0.05, device.release)
    timer.start()
    assert driver.cuStreamSynchronize(card.stream) == (CUresult.CUDA_SUCCESS,)
    timer.join()


def test_a_call_that_waits_for_ever_is_a_violation(card: Card, device: Device) -> None:
    memory = card.memory()
    device.hang(1, patience=0.01)
    ok(card.clear(memory, 1))
    assert driver.cuStreamSynchronize(card.stream) == (CUresult.CUDA_ERROR_LAUNCH_TIMEOUT,)
    assert "never ends" in device.forgive()[0]
    device.release()
