"""What the simulator is for: a backend from which something is taken away is found out.

Each mutation is a text of the backend's code and what stands there instead. With it, one of a few
short plays breaks a rule, leaks, fails, or shows other frames; without it, none of them does.
"""

from __future__ import annotations

import functools
import gc
import inspect
import textwrap
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings.driver import CUresult
from numpy.typing import NDArray
from tests.simulator.clock import Clock
from tests.simulator.simulated_cuda import Device

from sana_rt.benchmarks.speed.session_turn import KernelTimer
from sana_rt.errors import DeviceLostError
from sana_rt.runtime.backends import cuda_device
from sana_rt.runtime.backends.arena import Arena
from sana_rt.runtime.backends.cuda import CudaMemory, _Allocation, _Staging
from sana_rt.runtime.backends.cuda_device import Device as Gpu
from sana_rt.runtime.backends.cuda_graph import CapturedProgram
from sana_rt.runtime.backends.plan_context import Execution, PlanBinding, PlanContext
from sana_rt.runtime.backends.trt_api import Library
from sana_rt.runtime.session import Session

Clip = NDArray[np.uint8]
SEEDS = (0, 3, 1)
SHORT, LONG = "a red circle", "a blue square that moves slowly to the left on a green background"


@dataclass(frozen=True)
class Mutation:
    """``old`` in the code of ``method`` becomes ``new``; the play that finds it out."""

    method: Any
    old: str
    new: str
    play: str = "clips"


NOTHING = "pass"
MUTATIONS = {
    "pinned memory is written while it is read": Mutation(
        CudaMemory._fill, "staging.wait()", NOTHING
    ),
    "nobody knows when pinned memory was read": Mutation(
        CudaMemory._fill, "staging.record()", NOTHING
    ),
    "a wait does not wait": Mutation(Gpu.wait, "while not self._reached(event):", "while False:"),
    "a wait has no end": Mutation(
        Gpu.wait, "if time.monotonic() > deadline:", "if False:", "stuck"
    ),
    "a download without a wait": Mutation(CudaMemory._download, "pinned.wait()", NOTHING),
    "a download whose end nobody knows": Mutation(CudaMemory._download, "pinned.record()", NOTHING),
    "an upload without a wait": Mutation(CudaMemory._upload, "pinned.wait()", NOTHING),
    "an upload whose end nobody knows": Mutation(CudaMemory._upload, "pinned.record()", NOTHING),
    "a download waits for the device in the driver": Mutation(
        CudaMemory._download,
        "self._transfer(pinned.address, source.address + at, nbytes)",
        "self._transfer(host.ctypes.data + at, source.address + at, nbytes)\n"
        "        ctypes.memmove(pinned.address, host.ctypes.data + at, nbytes)",
        "stuck",
    ),
    "times of kernels without a wait": Mutation(
        PlanBinding.kernel_times, "self._place.device.synchronize()", NOTHING, "profiled"
    ),
    "a run that is timed waits in the driver": Mutation(
        Execution.attach, "self._context.enqueue_emits_profile = False", NOTHING, "profiled"
    ),
    "nobody listens to the profiler": Mutation(
        Execution.attach, "self._context.profiler = profiler", NOTHING, "profiled"
    ),
    "fresh memory is not cleared": Mutation(
        CudaMemory._allocate, "self._clear(allocation.address, max(nbytes, 1))", NOTHING
    ),
    "a copy is a byte short": Mutation(CudaMemory._transfer, "nbytes,", "nbytes - 1,"),
    "a copy is a byte long": Mutation(CudaMemory._transfer, "nbytes,", "nbytes + 1,"),
    "copies are on the default stream": Mutation(CudaMemory._transfer, "self.stream", "0"),
    "clears are on the default stream": Mutation(CudaMemory._clear, "self.stream", "0"),
    "runs are on the default stream": Mutation(Execution.run, "self._device.stream", "0"),
    "no profile is set": Mutation(
        Execution.__init__,
        "context.set_optimization_profile_async(_PROFILE, device.stream)",
        "True",
    ),
    "a shape is not set": Mutation(
        Execution.fit, "in shapes.items()", "in list(shapes.items())[1:]"
    ),
    "shapes are those of the last time": Mutation(
        Execution.fit, "if shapes == self.shapes:", "if self.shapes:"
    ),
    "nobody asks for the size of the arena": Mutation(
        Execution.fit, "self._context.update_device_memory_size_for_shapes()", "1 << 25"
    ),
    "the arena is too small": Mutation(Arena.reserve, "nbytes > self.nbytes", "not self.nbytes"),
    "contexts have no arena": Mutation(
        Execution.house, "self._context.set_device_memory(arena.address, arena.nbytes)", NOTHING
    ),
    "contexts are told a smaller arena": Mutation(
        Execution.house, "arena.nbytes", "arena.nbytes // 2"
    ),
    "contexts are told another arena": Mutation(
        Execution.house, "arena.address", "arena.address + 256"
    ),
    "the arena is not aligned": Mutation(Execution.house, "arena.address", "arena.address + 8"),
    "contexts do not move with the arena": Mutation(
        PlanContext.arena_moved, "execution.house(arena)", NOTHING
    ),
    "graphs do not move with the arena": Mutation(
        CapturedProgram.arena_moved, "self.forget()", NOTHING, "moved"
    ),
    "an address is not set": Mutation(
        Execution.point, "in buffers.items()", "in list(buffers.items())[1:]"
    ),
    "an address is another one": Mutation(
        Execution.point, "buffer.address)", "buffer.address + 256)"
    ),
    "nothing warms up": Mutation(
        CapturedProgram.run,
        "super().run()\n    if not self._refused:\n        self._capture()",
        "self._capture()\n    self._device.launch(self._graph)",
    ),
    "every run is captured anew": Mutation(
        CapturedProgram.run, "if self._graph is not None:", "if False:", "steps"
    ),
    "the context is not current": Mutation(
        Gpu._answer,
        "(status,) = cuda.cuCtxSetCurrent(self._context)",
        "status = cuda.CUresult.CUDA_SUCCESS",
    ),
    "contexts are destroyed while they run": Mutation(
        PlanContext.close, "if not self._place.device.settle():\n        return", NOTHING, "stopped"
    ),
    "the configuration goes before its contexts": Mutation(
        PlanContext.__init__, "[self._make()]", "[self._make()]; config = self._config = None"
    ),
    "kernels change behind a capture": Mutation(
        Library.config, "kinds.EAGER if specialized", "kinds.LAZY if specialized"
    ),
    "graphs are not destroyed": Mutation(
        CapturedProgram._capture,
        "self._device.keep(self, cuda.cuGraphExecDestroy, self._graph)",
        "None",
    ),
    "what was captured is not destroyed": Mutation(
        Gpu.capture,
        "finally:\n        self._destroy(cuda.cuGraphDestroy, graph)",
        "finally:\n        pass",
    ),
    "events are not destroyed": Mutation(
        Gpu.event, "self.keep(holder, cuda.cuEventDestroy, event)", NOTHING
    ),
    "memory is not freed": Mutation(
        _Allocation.__init__, "device.keep(self, cuda.cuMemFree, self.address)", NOTHING
    ),
    "pinned memory is not freed": Mutation(
        _Staging.__init__, "device.keep(self, cuda.cuMemFreeHost, self.address)", NOTHING
    ),
    "the stream is not destroyed": Mutation(
        Gpu.__init__, "self._keep(cuda.cuStreamDestroy, stream)", NOTHING
    ),
    "the context is not released": Mutation(
        Gpu.__init__, "(self, cuda.cuDevicePrimaryCtxRelease, device)", "(self, int)"
    ),
}


def mutate(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the changed method in the place of the one that there is."""
    method = mutation.method
    source = textwrap.dedent(inspect.getsource(method))
    assert source.count(mutation.old) == 1, f"{method.__qualname__} has changed:\n{source}"
    changed = textwrap.indent(source.replace(mutation.old, mutation.new), "    ")
    text = f"def make(__class__):\n{changed}\n    return {method.__name__}"
    module = inspect.getmodule(method)
    assert module is not None
    made: dict[str, Any] = {}
    future = "from __future__ import annotations\n"
    exec(compile(future + text, "<mutation>", "exec"), vars(module), made)
    owner = vars(module)[method.__qualname__.partition(".")[0]]
    monkeypatch.setattr(owner, method.__name__, made["make"](owner))


# --- The plays ---


def opened(bundle: Path, **options: Any) -> Session:
    return Session.open(
        bundle, variant="fp32", backend="tensorrt", threads=1, timeout=1.0, **options
    )


def clip(session: Session, prompt: str = SHORT, **options: Any) -> Clip:
    request = session.request(prompt=prompt, num_inference_steps=4)
    return np.concatenate(list(session.generate(request, **options)))


@functools.cache
def expected(bundle: Path, prompt: str) -> Clip:
    with Session.open(bundle, variant="fp32", backend="onnxruntime", threads=1) as session:
        return clip(session, prompt)


def clips(bundle: Path, device: Device, **options: Any) -> None:
    """Three clips in one session."""
    with opened(bundle, **options) as session:
        for prompt in (SHORT, LONG, SHORT):
            np.testing.assert_array_equal(clip(session, prompt), expected(bundle, prompt))


def cycles(bundle: Path, device: Device) -> None:
    """The same, in a memory for which phases take turns."""
    clips(bundle, device, max_memory="110MB")


def moved(bundle: Path, device: Device) -> None:
    """A clip during which the arena moves, which it does where a graph needs more than before."""
    with opened(bundle) as session:

        def move(progress: Any) -> None:
            if (progress.stage, progress.done) == ("denoise", 3):
                arena = session.graphs._backend._arena  # type: ignore[attr-defined] # of TensorRT
                arena.resize(arena.nbytes + 4096)

        found = clip(session, progress=move)
    np.testing.assert_array_equal(found, expected(bundle, SHORT))


def stopped(bundle: Path, device: Device) -> None:
    """A clip that is given up in the middle of a step."""

    def stop(progress: Any) -> None:
        if (progress.stage, progress.done) == ("denoise", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opened(bundle) as session:
        clip(session, progress=stop)


def stuck(bundle: Path, device: Device) -> None:
    """A device that does not answer any more."""

    def hang(progress: Any) -> None:
        if (progress.stage, progress.done) == ("denoise", 4):
            device.hang(patience=0.1)

    with pytest.raises(DeviceLostError), opened(bundle) as session:
        clip(session, progress=hang)
    device.release()


def steps(bundle: Path, device: Device) -> None:
    """What is asked of the device for the last step."""

    def look(progress: Any) -> None:
        if (progress.stage, progress.done) == ("denoise", 3):
            device.mark()
        elif (progress.stage, progress.done) == ("denoise", 4):
            calls = device.report().calls
            assert calls["cuGraphLaunch"] == 1
            assert calls["cuMemcpyAsync"] <= 3
            assert not {name for name in calls if "Capture" in name or "Alloc" in name}

    with opened(bundle) as session:
        clip(session, progress=look)


def profiled(bundle: Path, device: Device) -> None:
    """A clip of which the kernels are timed."""
    timer = KernelTimer()
    with opened(bundle, observers=(timer,)) as session:
        np.testing.assert_array_equal(clip(session), expected(bundle, SHORT))
        assert "cuStreamSynchronize" not in device.report().calls
    assert {each.graph for each in timer.times()} >= {"block_00", "solver", "vae_decoder"}


PLAYS: dict[str, Callable[[Path, Device], None]] = {
    each.__name__: each for each in (clips, cycles, moved, profiled, steps, stopped, stuck)
}


def elsewhere(play: Callable[[], None]) -> list[BaseException]:
    """What a play raises in a new thread, which has no current context."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            play()
        except BaseException as error:  # noqa: BLE001 - whatever it is
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def found_out(play: str, bundle: Path, device: Device, seed: int) -> list[str]:
    """What is wrong with a play."""
    device.reset(seed=seed)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        raised = elsewhere(lambda: PLAYS[play](bundle, device))
    failures = [f"{type(error).__name__}: {error}" for error in raised]
    for error in raised:
        error.__traceback__ = None
    raised.clear()
    gc.collect()
    leaks = [] if play == "stuck" else device.report().leaks
    return [*device.forgive(), *failures, *leaks, *(str(note.message) for note in notes)]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cuda_device, "time", clock)
    return clock


def lose(device: Device) -> None:
    """What is left on the device does not matter any more."""
    device.reset()
    device.fail_everything(CUresult.CUDA_ERROR_UNKNOWN)


@pytest.mark.parametrize("play", PLAYS)
def test_nothing_is_wrong_without_a_mutation(play: str, plans: Path, device: Device) -> None:
    for seed in SEEDS:
        assert found_out(play, plans, device, seed) == []
    lose(device)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_found_out(
    name: str, plans: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation = MUTATIONS[name]
    mutate(mutation, monkeypatch)
    assert any(found_out(mutation.play, plans, device, seed) for seed in SEEDS)
    lose(device)
