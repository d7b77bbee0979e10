"""The rules of TensorRT-RTX's documentation: kept, a plan plays; broken, it is noticed."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver

from sana_rt.bundle import Bundle
from tests.simulator.simulated_cuda import Device


def ok(result: tuple[Any, ...]) -> Any:
    assert result[0] == driver.CUresult.CUDA_SUCCESS, result
    return result[1] if len(result) > 1 else None


class Card:
    def __init__(self) -> None:
        ok(driver.cuInit(0))
        ok(driver.cuCtxSetCurrent(ok(driver.cuDevicePrimaryCtxRetain(0))))
        self.stream = int(ok(driver.cuStreamCreate(1)))


def test_a_plan(plans: Path, device: Device) -> None:
    import tensorrt_rtx as trt

    bundle = Bundle.open(plans)
    plan = bundle.manifest.variants["fp32"].plans["sm120"]["timestep"]
    card = Card()
    runtime = trt.Runtime(trt.Logger())
    blob = bundle.path(plan.path).read_bytes()
    print(runtime.get_engine_validity(blob[:64]))
    engine = runtime.deserialize_cuda_engine(blob)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(
        trt.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    config.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    context = engine.create_execution_context(config)
    context.set_optimization_profile_async(0, card.stream)
    for spec in plan.inputs:
        context.set_input_shape(
            spec.name, tuple({"batch": 2, "frames": 5}.get(d, d) for d in spec.shape)
        )
    assert context.infer_shapes() == []
    need = context.update_device_memory_size_for_shapes()
    arena = int(ok(driver.cuMemAlloc(need)))
    context.set_device_memory(arena, need)
    for spec in (*plan.inputs, *plan.outputs):
        shape = tuple(context.get_tensor_shape(spec.name))
        n = 4 * int(np.prod(shape))
        a = int(ok(driver.cuMemAlloc(n)))
        print(spec.name, shape, n)
        ok(driver.cuMemsetD8Async(a, 0, n, card.stream))
        assert context.set_tensor_address(spec.name, a)
    assert context.execute_async_v3(card.stream)
    out = np.zeros(shape, np.float32)
    ok(driver.cuMemcpyAsync(out.ctypes.data, a, n, card.stream))
    print(out)
    print(device.report())
    assert 0
