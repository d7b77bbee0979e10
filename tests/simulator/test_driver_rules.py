"""Rules of CUDA's driver, each broken once: that is noticed, and the call says it, too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from cuda.bindings import driver
from cuda.bindings.driver import CUresult
from tests.simulator.card import GLOBAL, RELAXED, THREAD_LOCAL, Card, fill, ok
from tests.simulator.simulated_cuda import Device

Breach = Callable[[Card], Any]


def freed(card: Card) -> Any:
    memory = ok(driver.cuMemAlloc(64))
    ok(driver.cuMemFree(memory))
    return memory


def destroyed_stream() -> Any:
    stream = ok(driver.cuStreamCreate(1))
    ok(driver.cuStreamDestroy(stream))
    return stream


def destroyed_event() -> Any:
    event = ok(driver.cuEventCreate(2))
    ok(driver.cuEventDestroy(event))
    return event


def without_context(call: Callable[[], Any]) -> Any:
    """The result of a call in a thread that has no current context."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def freed_in_use(card: Card) -> Any:
    pinned = ok(driver.cuMemAllocHost(64))
    ok(card.copy(card.memory(), pinned))
    return driver.cuMemFreeHost(pinned)


def replay_after_free(card: Card) -> Any:
    memory = ok(driver.cuMemAlloc(64))
    card.begin()
    ok(card.clear(memory, 1))
    graph = card.graph()
    ok(driver.cuMemFree(memory))
    return card.launch(graph)


#: What nobody may do: the words of the violation, and what does it.
VIOLATIONS: dict[str, tuple[str, Breach]] = {
    "use after free": ("freed", lambda card: card.clear(freed(card), 1)),
    "double free": ("freed a second time", lambda card: driver.cuMemFree(freed(card))),
    "free of no allocation": (
        "not the address of an allocation",
        lambda card: driver.cuMemFree(int(card.memory()) + 16),
    ),
    "free of pinned memory as device memory": (
        "not the address of an allocation",
        lambda card: driver.cuMemFree(card.pinned()),
    ),
    "copy beyond the end": ("leave", lambda card: card.copy(card.memory(), card.memory(65), 65)),
    "clear beyond the end": ("leave", lambda card: card.clear(card.memory(), 0, nbytes=65)),
    "copy from before the start": (
        "is in no allocation",
        lambda card: card.copy(card.memory(), int(card.memory()) - 1),
    ),
    "copy onto itself": (
        "overlap",
        lambda card: card.copy(int(memory := card.memory(128)) + 1, memory),
    ),
    "clear of host memory": (
        "is not memory of the device",
        lambda card: card.clear(id(card), 0, nbytes=1),
    ),
    "free of pinned memory in use": ("uses it", freed_in_use),
    "replay after a free": ("freed", replay_after_free),
    "destroyed stream": (
        "a destroyed stream",
        lambda card: card.clear(card.memory(), 1, destroyed_stream()),
    ),
    "stream destroyed twice": (
        "a destroyed stream",
        lambda _: driver.cuStreamDestroy(destroyed_stream()),
    ),
    "no stream": ("not a stream", lambda _: driver.cuStreamSynchronize(1234)),
    "destroyed event": (
        "a destroyed event",
        lambda card: driver.cuEventRecord(destroyed_event(), card.stream),
    ),
    "time of an event without": (
        "without timing",
        lambda card: driver.cuEventElapsedTime(card.event(), card.event()),
    ),
    "no current context": (
        "no current context",
        lambda _: without_context(lambda: driver.cuMemAlloc(64)),
    ),
    "no context": ("not a context", lambda _: driver.cuCtxSetCurrent(1234)),
    "no device": ("there is no device", lambda _: driver.cuDeviceGet(1)),
}


@pytest.mark.parametrize("rule", VIOLATIONS)
def test_breaking_a_rule_is_noticed(rule: str, card: Card, device: Device) -> None:
    words, breach = VIOLATIONS[rule]
    result, *_ = breach(card)
    found = device.forgive()
    assert len(found) == 1
    assert words in found[0]
    pinned_in_use = "uses it"  # the memory is given back all the same
    assert (result == CUresult.CUDA_SUCCESS) == (words == pinned_in_use)


def test_calls_before_the_start_are_noticed(device: Device) -> None:
    assert driver.cuDeviceGetCount()[0] == CUresult.CUDA_ERROR_NOT_INITIALIZED
    assert "cuInit was not called" in device.forgive()[0]


# --- Captures ---


def wait_for_event_from_outside(card: Card) -> Any:
    event = card.event()
    ok(driver.cuEventRecord(event, card.new_stream()))
    card.begin()
    return driver.cuStreamWaitEvent(card.stream, event, 0)


def merge_captures(card: Card) -> Any:
    other, event = card.new_stream(), card.event()
    card.begin()
    card.begin(stream=other)
    ok(driver.cuEventRecord(event, other))
    result = driver.cuStreamWaitEvent(card.stream, event, 0)
    driver.cuStreamEndCapture(other)
    return result


def query_captured_event(card: Card) -> Any:
    event = card.event()
    card.begin()
    ok(driver.cuEventRecord(event, card.stream))
    return driver.cuEventQuery(event)


def with_default_stream(card: Card) -> Any:
    memory, card.stream = card.some, card.new_stream(0)
    card.begin()
    return driver.cuMemsetD8Async(memory, 0, 64, 0)


def in_capture(call: Breach) -> Breach:
    def breach(card: Card) -> Any:
        memory = card.some
        card.begin()
        ok(card.clear(memory, 1))
        return call(card)

    return breach


UNSUPPORTED = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
CAPTURED_EVENT = CUresult.CUDA_ERROR_CAPTURED_EVENT
#: What a capture in thread-local mode refuses, and with what.
REFUSED: dict[str, tuple[CUresult, Breach]] = {
    "allocation": (UNSUPPORTED, in_capture(lambda _: driver.cuMemAlloc(64))),
    "free": (UNSUPPORTED, in_capture(lambda card: driver.cuMemFree(card.some))),
    "allocation of pinned memory": (UNSUPPORTED, in_capture(lambda _: driver.cuMemAllocHost(64))),
    "wait for the stream": (
        UNSUPPORTED,
        in_capture(lambda card: driver.cuStreamSynchronize(card.stream)),
    ),
    "query of the stream": (
        UNSUPPORTED,
        in_capture(lambda card: driver.cuStreamQuery(card.stream)),
    ),
    "wait for the context": (UNSUPPORTED, in_capture(lambda _: driver.cuCtxSynchronize())),
    "wait for an event": (
        UNSUPPORTED,
        in_capture(lambda card: driver.cuEventSynchronize(card.event())),
    ),
    "copy with pageable memory": (
        UNSUPPORTED,
        in_capture(lambda card: card.copy(id(card), card.some)),
    ),
    "copy that waits": (
        UNSUPPORTED,
        in_capture(lambda card: driver.cuMemcpyDtoH(bytearray(64), card.some, 64)),
    ),
    "default stream": (CUresult.CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, with_default_stream),
    "event from outside": (
        CUresult.CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
        wait_for_event_from_outside,
    ),
    "two captures": (CUresult.CUDA_ERROR_STREAM_CAPTURE_MERGE, merge_captures),
    "query of a captured event": (CAPTURED_EVENT, query_captured_event),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_capture_refuses(what: str, card: Card, device: Device) -> None:
    expected, breach = REFUSED[what]
    result, *_ = breach(card)
    assert result == expected
    ended, _ = card.end()
    invalidated = CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    assert ended == (CUresult.CUDA_SUCCESS if expected == CAPTURED_EVENT else invalidated)
    assert device.report().captures == 0


def test_the_default_stream_is_not_captured(card: Card) -> None:
    assert driver.cuStreamBeginCapture(0, THREAD_LOCAL) == (UNSUPPORTED,)


def test_a_fork_has_to_be_joined(card: Card) -> None:
    memory, other, event = card.memory(), card.new_stream(), card.event()
    card.begin()
    ok(driver.cuEventRecord(event, card.stream))
    ok(driver.cuStreamWaitEvent(other, event, 0))
    ok(card.clear(memory, 1, other))
    assert card.end()[0] == CUresult.CUDA_ERROR_STREAM_CAPTURE_UNJOINED


def test_a_capture_ends_where_it_began(card: Card) -> None:
    other, event = card.new_stream(), card.event()
    card.begin()
    ok(driver.cuEventRecord(event, card.stream))
    ok(driver.cuStreamWaitEvent(other, event, 0))
    unmatched = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNMATCHED
    assert driver.cuStreamEndCapture(other)[0] == unmatched
    assert card.end()[0] == CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


def test_a_capture_ends_in_the_thread_that_began_it(card: Card) -> None:
    card.begin()

    def end() -> Any:
        ok(driver.cuCtxSetCurrent(card.context))
        return driver.cuStreamEndCapture(card.stream)

    assert without_context(end)[0] == CUresult.CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD
    assert card.end()[0] == CUresult.CUDA_SUCCESS


@pytest.mark.parametrize(
    ("mode", "mine", "theirs"),
    [(GLOBAL, False, False), (THREAD_LOCAL, False, True), (RELAXED, True, True)],
)
def test_what_the_modes_allow(mode: Any, mine: bool, theirs: bool, card: Card) -> None:
    def allocate() -> Any:
        ok(driver.cuCtxSetCurrent(card.context))
        result, memory = driver.cuMemAlloc(64)
        if result == CUresult.CUDA_SUCCESS:
            ok(driver.cuMemFree(memory))
        return result

    for allowed, do in ((theirs, lambda: without_context(allocate)), (mine, allocate)):
        card.begin(mode)
        assert (do() == CUresult.CUDA_SUCCESS) == allowed
        assert (card.end()[0] == CUresult.CUDA_SUCCESS) == allowed


def test_a_thread_may_exchange_its_mode(card: Card) -> None:
    previous = ok(driver.cuThreadExchangeStreamCaptureMode(RELAXED))
    card.begin()
    card.memory()
    assert ok(driver.cuThreadExchangeStreamCaptureMode(previous)) == RELAXED
    assert card.end()[0] == CUresult.CUDA_SUCCESS


# --- Graphs ---


@pytest.mark.parametrize("seed", range(8))
def test_a_graph_does_what_was_captured_and_nothing_before(seed: int, device: Device) -> None:
    device.reset(seed=seed)
    card = Card()
    memory, other, pinned = card.memory(), card.memory(), card.pinned()
    ok(card.clear(memory, 9))
    ok(card.clear(other, 9))
    card.begin()
    ok(card.copy(memory, pinned))
    ok(card.copy(other, memory))
    graph = card.graph()
    assert (card.read(other) == 9).all()
    for value in range(3):
        ok(driver.cuStreamSynchronize(card.stream))
        fill(pinned, value)
        ok(card.launch(graph))
        assert (card.read(other) == value).all()
    card.close()


@pytest.mark.parametrize("seed", range(8))
def test_the_branches_of_a_graph_are_joined(seed: int, device: Device) -> None:
    device.reset(seed=seed)
    card = Card()
    one, two = card.memory(), card.memory()
    other, forked, joined = card.new_stream(), card.event(), card.event()
    card.begin()
    ok(driver.cuEventRecord(forked, card.stream))
    ok(driver.cuStreamWaitEvent(other, forked, 0))
    ok(card.clear(one, 1))
    ok(card.clear(two, 2, other))
    ok(driver.cuEventRecord(joined, other))
    ok(driver.cuStreamWaitEvent(card.stream, joined, 0))
    ok(card.copy(one, two))
    ok(card.launch(card.graph()))
    assert (card.read(one) == 2).all()
    card.close()


def test_branches_of_a_graph_must_not_touch_the_same_bytes(card: Card, device: Device) -> None:
    memory, other, forked, joined = card.memory(), card.new_stream(), card.event(), card.event()
    card.begin()
    ok(driver.cuEventRecord(forked, card.stream))
    ok(driver.cuStreamWaitEvent(other, forked, 0))
    ok(card.clear(memory, 1))
    ok(card.clear(memory, 2, other))
    ok(driver.cuEventRecord(joined, other))
    ok(driver.cuStreamWaitEvent(card.stream, joined, 0))
    card.graph()
    assert "in a graph, nothing orders" in device.forgive()[0]
