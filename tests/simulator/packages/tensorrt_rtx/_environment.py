"""What plans and caches depend on, and what a test makes of it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from pathlib import Path
from typing import Final

from tests.simulator.simulated_cuda import SONAME

from tensorrt_rtx._enumerations import EngineInvalidityDiagnostics

#: The variable with the folders of bundles whose plans can be played, as in PATH.
BUNDLES: Final = "SIMULATED_BUNDLES"
#: Bits of a plan's header by the compute capability that it was built for.
_CAPABILITIES: Final = {(8, 0): 2, (8, 6): 4, (8, 9): 8, (12, 0): 16, (12, 1): 32}
_MAGIC: Final = b"vtrt"

#: Reasons that a test wants plans to be refused for.
refusals: set[EngineInvalidityDiagnostics] = set()
#: Graphs that contexts compiled kernels for, because no runtime cache had them.
compiled: list[str] = []
#: Names by which profilers are told of kernels, where they are not those of the layer table.
renamed: dict[str, str] = {}
#: The bundles that this process knows beside those of the environment.
bundles: list[Path] = []


def reset() -> None:
    """Forget what tests asked for."""
    refusals.clear()
    compiled.clear()
    renamed.clear()
    bundles.clear()


def known_bundles() -> list[Path]:
    """The bundles whose plans can be played."""
    named = os.environ.get(BUNDLES, "").split(os.pathsep)
    return [*bundles, *(Path(name) for name in named if name)]


def describe() -> dict[str, object]:
    """What a runtime cache depends on."""
    driver = ctypes.CDLL(SONAME)
    name, version = ctypes.create_string_buffer(100), ctypes.c_int()
    driver.cuDeviceGetName(name, len(name), 0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return {"version": _version(), "card": name.value.decode(), "driver": version.value // 1000}


def invalid(header: bytes) -> int:
    """Why a plan would not run here, as a mask of bits."""
    reasons = set(refusals)
    if not header.startswith(_MAGIC) or header[28:32] != _MAGIC or len(header) < 64:
        reasons.add(EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    elif tuple(header[24:28]) != tuple(map(int, _version().split("."))):
        reasons.add(EngineInvalidityDiagnostics.VERSION_MISMATCH)
    elif (capability := _capability()) is None:
        reasons.add(EngineInvalidityDiagnostics.CUDA_ERROR)
    elif not header[32] & _CAPABILITIES.get(capability, 0):
        reasons.add(EngineInvalidityDiagnostics.UNSUPPORTED_CC)
    return sum(reasons)


def _capability() -> tuple[int, int] | None:
    """What the driver says, unless it fails."""
    driver, values = ctypes.CDLL(SONAME), []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0) != 0:
            return None
        values.append(value.value)
    return values[0], values[1]


def _version() -> str:
    return importlib.metadata.version("tensorrt_rtx_cu13")
