"""GPU memory through cuda-python on the simulated driver: copies, waits, times, errors."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest
from cuda.bindings import driver
from tests.simulator.simulated_cuda import CARD, Device

from sana_rt.errors import BackendError, DeviceLostError, DeviceMemoryError
from sana_rt.runtime.backends import cuda
from sana_rt.runtime.backends.cuda import CudaMemory
from sana_rt.runtime.backends.cuda_device import card

SEEDS = range(6)
VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_tensors_go_there_and_back(device: Device, seed: int) -> None:
    device.reset(seed=seed)
    memory = CudaMemory()
    first, second = (memory.allocate("float32", (4, 3)) for _ in range(2))
    assert not memory.download(first).any()
    values = VALUES.copy()
    memory.upload(first, values)
    values[:] = -1  # the host's memory is its own again
    memory.copy(second[1:3], first[2:4])
    memory.clear(second[2:3])
    np.testing.assert_array_equal(memory.download(first), VALUES)
    np.testing.assert_array_equal(memory.download(second), [[0] * 3, [6, 7, 8], [0] * 3, [0] * 3])
    assert memory.allocations == 2
    memory.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_filled_comes_in_order(device: Device, seed: int) -> None:
    """Whatever the device does late: a value is not overwritten before it has been read."""
    device.reset(seed=seed)
    memory = CudaMemory()
    whole, seen = memory.allocate("bfloat16", (2, 3)), memory.allocate("bfloat16", (9, 2, 3))
    for value in range(9):
        memory.fill(whole, np.full((2, 3), value, np.float32))
        memory.fill(whole[1:2], np.full((1, 3), -value, np.float32))
        memory.copy(seen.row(value), whole)
    expected = [[[value] * 3, [-value] * 3] for value in range(9)]
    np.testing.assert_array_equal(memory.download(seen), expected)
    memory.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_larger_than_pinned_memory_comes_in_pieces(
    device: Device, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing goes from or to ordinary memory of the host, where the driver would wait."""
    monkeypatch.setattr(cuda, "_PIECE", 20)
    device.reset(seed=seed)
    memory = CudaMemory()
    buffer = memory.allocate("float32", (4, 3))
    memory.upload(buffer, VALUES)
    np.testing.assert_array_equal(memory.download(buffer), VALUES)
    report = device.report()
    assert report.pinned_bytes == 20
    assert report.bytes["pinned to device"] == report.bytes["device to pinned"] == buffer.nbytes
    assert not [kind for kind in report.bytes if "pageable" in kind]
    assert report.calls["cuMemcpyAsync"] == 6
    memory.close()


@pytest.mark.parametrize("name", ["upload", "fill"])
def test_a_copy_without_an_event_is_waited_for_all_the_same(device: Device, name: str) -> None:
    memory = CudaMemory()
    buffer = memory.allocate("float32", (4, 3))
    getattr(memory, name)(buffer, -VALUES)
    device.fail("cuEventRecord", 1, driver.CUresult.CUDA_ERROR_NOT_SUPPORTED)
    with pytest.raises(BackendError, match="cuEventRecord"):
        getattr(memory, name)(buffer, -VALUES)
    getattr(memory, name)(buffer, VALUES)
    np.testing.assert_array_equal(memory.download(buffer), VALUES)
    memory.close()


def test_a_fill_waits_for_the_one_before_and_takes_no_other_memory(device: Device) -> None:
    memory = CudaMemory()
    buffer = memory.allocate("float32", (4, 3))
    memory.fill(buffer, VALUES)
    pinned = device.report().pinned_bytes
    assert pinned == buffer.nbytes
    device.mark()
    memory.fill(buffer, VALUES)
    memory.fill(buffer[1:2], VALUES[1:2])
    report = device.report()
    assert report.pinned_bytes == pinned
    assert report.calls["cuMemcpyAsync"] == report.calls["cuEventRecord"] == 2
    assert not [kind for kind in report.bytes if "pageable" in kind]
    memory.close()


def test_memory_is_freed_with_the_last_buffer_in_it_also_after_the_end(device: Device) -> None:
    memory = CudaMemory()
    whole = memory.allocate("uint8", (10,))
    part = whole[2:4]
    memory.fill(part, np.zeros(2, np.uint8))
    del whole
    gc.collect()
    assert device.report().device_bytes
    memory.close()
    memory.close()
    del memory, part
    gc.collect()
    assert device.report().leaks == []
    assert device.report().contexts == 0


def test_times_lie_between_marks(device: Device) -> None:
    memory = CudaMemory()
    timer = memory.timer()
    timer.mark("start")
    for name in ("first", "second"):
        memory.allocate("uint8", (10,))
        timer.mark(name)
    times = timer.seconds()
    assert [name for name, _ in times] == ["first", "second"]
    assert all(0 <= seconds < 10 for _, seconds in times)
    assert memory.timer().seconds() == []
    memory.close()


def test_the_card_is_described_without_a_context(device: Device) -> None:
    device.reset(capability=(8, 9), driver=12080)
    assert (card().name, card().compute_capability, card().driver) == (CARD, "8.9", "12.8")
    assert device.report().contexts == 0


def test_no_card(device: Device) -> None:
    device.reset(count=0)
    with pytest.raises(BackendError, match="finds no GPU"):
        CudaMemory()
    device.reset()
    device.fail("cuDevicePrimaryCtxRetain", result=driver.CUresult.CUDA_ERROR_INVALID_DEVICE)
    with pytest.raises(BackendError, match="CUDA_ERROR_INVALID_DEVICE"):
        CudaMemory()


def test_what_does_not_fit_is_told_with_numbers(device: Device) -> None:
    device.reset(memory=1 << 20)
    memory = CudaMemory()
    with pytest.raises(DeviceMemoryError, match=r"4,194,304 bytes of Simul.*; [\d,]+ of 1,048,576"):
        memory.allocate("uint8", (4 << 20,))
    buffer = memory.allocate("uint8", (100,))
    device.fail("cuMemAllocHost")
    with pytest.raises(DeviceMemoryError, match="100 bytes of pinned host memory"):
        memory.fill(buffer, np.zeros(100, np.uint8))
    memory.fill(buffer, np.ones(100, np.uint8))
    assert memory.download(buffer).all()
    memory.close()


def test_a_wait_that_does_not_end_is_given_up(device: Device) -> None:
    memory = CudaMemory(timeout=0.1)
    memory.begin("waiting for the test")
    buffer = memory.allocate("float32", (4, 3))
    device.hang(patience=30)
    started = time.monotonic()
    with pytest.raises(DeviceLostError, match=r"for 0\.1 seconds \(waiting for the test\)"):
        memory.download(buffer)
    assert time.monotonic() - started < 5
    with pytest.raises(DeviceLostError, match="restart the process"):
        memory.clear(buffer)
    memory.close()
    del buffer, memory
    gc.collect()
    device.reset()  # what is on a lost device stays there


def test_after_an_error_that_stays_nothing_is_asked_any_more(device: Device) -> None:
    memory = CudaMemory()
    buffer = memory.allocate("float32", (4, 3))
    memory.fill(buffer, VALUES)
    device.fail_work()
    with pytest.raises(DeviceLostError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        memory.download(buffer)
    device.mark()
    with pytest.raises(DeviceLostError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        memory.free_bytes()
    memory.close()
    del buffer, memory
    gc.collect()
    assert device.report().calls == {}


def test_what_is_collected_during_a_capture_is_freed_after_it(device: Device) -> None:
    memory = CudaMemory()
    kept = memory.allocate("uint8", (8,))
    buffers = [memory.allocate("uint8", (8,))]
    memory.fill(buffers[0], np.zeros(8, np.uint8))

    def work() -> None:
        memory.clear(kept)
        buffers.clear()
        gc.collect()

    graph = memory.device.capture(work)
    memory.upload(kept, np.ones(8, np.uint8))
    memory.device.launch(graph)
    assert not memory.download(kept).any()
    assert device.report().pinned_bytes == cuda._PIECE, "what other copies use"
    memory.device.keep(memory, driver.cuGraphExecDestroy, graph)
    memory.close()


def test_a_capture_that_breaks_leaves_the_stream_as_it_was(device: Device) -> None:
    memory = CudaMemory()
    buffer = memory.allocate("uint8", (8,))

    def work() -> None:
        memory.clear(buffer)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.device.capture(work)
    with pytest.raises(BackendError, match="CAPTURE"):
        memory.device.capture(lambda: memory.upload(buffer, np.ones(8, np.uint8)))
    memory.upload(buffer, np.ones(8, np.uint8))
    assert memory.download(buffer).all()
    memory.close()
