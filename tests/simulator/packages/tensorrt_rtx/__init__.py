"""A stand-in for TensorRT-RTX's Python API on the simulated device.

A plan is played by ONNX Runtime from the graph that it was built from; the names are those of
the real package, and what its documentation forbids is a violation (see docs/simulator.md).
"""

import importlib.metadata

from tensorrt_rtx._config import IRuntimeCache, IRuntimeConfig
from tensorrt_rtx._context import IExecutionContext
from tensorrt_rtx._engine import ICudaEngine, Runtime
from tensorrt_rtx._enumerations import (
    CudaGraphStrategy,
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    EngineInvalidityDiagnostics,
    EngineValidity,
    ExecutionContextAllocationStrategy,
    TensorIOMode,
    TensorLocation,
)
from tensorrt_rtx._values import Dims, IHostMemory, ILogger, IProfiler, Logger

__version__ = importlib.metadata.version("tensorrt_rtx_cu13")

__all__ = [
    "CudaGraphStrategy",
    "DataType",
    "Dims",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "ExecutionContextAllocationStrategy",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "IProfiler",
    "IRuntimeCache",
    "IRuntimeConfig",
    "Logger",
    "Runtime",
    "TensorIOMode",
    "TensorLocation",
]
