"""The backend with one wait, one address or one size taken out: the simulated device notices."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.simulator.simulated_cuda import Device

from sana_rt.errors import SanaRTError
from sana_rt.runtime.backends import cuda, plan_context
from sana_rt.runtime.backends.arena import Arena
from sana_rt.runtime.backends.cuda_device import Device as CudaDevice
from sana_rt.runtime.backends.plan_context import Execution
from sana_rt.runtime.backends.trt_api import Library
from sana_rt.runtime.session import Session

SEEDS = range(6)


def play(bundle: Path, backend: str = "tensorrt") -> Any:
    """Two clips, so that contexts and memory are used again."""
    with Session.open(bundle, variant="fp32", backend=backend, threads=1) as session:
        clips = []
        for prompt in ("a red circle", "a blue square"):
            request = session.request(prompt=prompt, num_inference_steps=3)
            clips.append(np.concatenate(list(session.generate(request))))
        return clips


@pytest.fixture(scope="session")
def expected(plan_bundle: Path) -> Any:
    return play(plan_bundle, "onnxruntime")


def nothing(*_: Any, **__: Any) -> None:
    pass


def without_the_first(method: Callable[..., Any]) -> Callable[..., Any]:
    """``Execution.point`` that forgets a buffer."""

    def mutated(self: Any, buffers: Any) -> Any:
        return method(self, dict(list(buffers.items())[1:]))

    return mutated


def with_shapes_unset(self: Execution, shapes: Any) -> None:
    self.shapes, self.needed_bytes = shapes, 1 << 20


def half(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, nbytes: method(self, nbytes // 2)


def without_size(self: Execution, shapes: Any) -> None:
    for name, shape in shapes.items():
        self._context.set_input_shape(name, shape)
    self.shapes, self.needed_bytes = shapes, 1 << 26


def misaligned(self: Execution, arena: Arena) -> None:
    self._context.set_device_memory(arena.address + 64, arena.nbytes - 64)


def on_the_default_stream(method: Callable[..., Any]) -> Callable[..., Any]:
    def mutated(self: CudaDevice, *arguments: Any) -> None:
        method(self, *arguments)
        self.stream = 0

    return mutated


def with_lazy_kernels(method: Callable[..., Any]) -> Callable[..., Any]:
    def mutated(self: Library, engine: Any, **options: Any) -> Any:
        from tensorrt_rtx import DynamicShapesKernelSpecializationStrategy as Strategy

        config = method(self, engine, **options)
        config.dynamic_shapes_kernel_specialization_strategy = Strategy.LAZY
        return config

    return mutated


#: Where, what, and by what it is replaced.
MUTATIONS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "a fill does not wait for the one before": (cuda._Staging, "wait", lambda _: nothing),
    "a fill is not marked": (cuda._Staging, "record", lambda _: nothing),
    "an address is not set": (Execution, "point", without_the_first),
    "shapes are not set": (Execution, "fit", lambda _: with_shapes_unset),
    "the size is not asked for": (Execution, "fit", lambda _: without_size),
    "the arena is not set": (Execution, "house", lambda _: nothing),
    "the arena is not aligned": (Execution, "house", lambda _: misaligned),
    "the arena is too small": (Arena, "reserve", half),
    "the profile is not set": (plan_context, "_PROFILE", lambda _: 7),
    "the default stream": (CudaDevice, "__init__", on_the_default_stream),
    "kernels change behind a capture": (
        Library,
        "config",
        with_lazy_kernels,
    ),
}


def notices(plans: Path, device: Device, expected: Any) -> str:
    """What is seen of a mutation under one schedule; nothing if it goes unnoticed."""
    try:
        same = all(map(np.array_equal, play(plans), expected))
    except (SanaRTError, UserWarning) as error:
        return repr(error)
    report = device.report()
    return "other frames" if not same else "; ".join(report.violations + report.leaks)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_taken_out_is_missed(
    plans: Path, expected: Any, device: Device, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    owner, attribute, mutate = MUTATIONS[name]
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, mutate(getattr(owner, attribute)))
        seen = []
        for seed in SEEDS:
            device.reset(seed=seed)
            seen.append(notices(plans, device, expected))
            gc.collect()
            if any(seen):
                break
    device.reset()
    assert any(seen), "nobody noticed"


def test_without_a_mutation_nothing_is_noticed(plans: Path, expected: Any, device: Device) -> None:
    for seed in SEEDS:
        device.reset(seed=seed)
        assert not notices(plans, device, expected)
