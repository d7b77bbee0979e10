"""SANA-Video: checkpoint to ONNX, NVFP4 and TensorRT-RTX plans, and a runtime without PyTorch.

What is public is in ``__all__`` and described in docs/python.md; everything else is internal.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Final

from sana_rt import errors

if TYPE_CHECKING:
    from sana_rt.runtime.pipeline import Progress
    from sana_rt.runtime.player import open  # noqa: A004 - users call it sana_rt.open
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.state import State

__all__ = ["Progress", "Request", "State", "__version__", "errors", "open"]
__version__ = "0.1.0"

# ONNX Runtime's library reads it when it is loaded; without it, it reports its use to its vendor.
# Its function disable_telemetry_events comes too late for that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

#: Where the names come from; importing them loads numpy, so that waits for their first use.
_MODULES: Final = {
    "Progress": "sana_rt.runtime.pipeline",
    "Request": "sana_rt.runtime.request",
    "State": "sana_rt.runtime.state",
    "open": "sana_rt.runtime.player",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
