"""The computer that this process runs on, and what the process uses of it.

Linux tells everything; where a system does not tell, the answer is None.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

#: How libraries say that they got no memory, where they do not raise MemoryError: PyTorch and
#: safetensors, the C++ library, oneDNN, protobuf.
_REFUSALS: Final = (
    "allocate memory",
    "alloc failed",
    "bad alloc",
    "bad_alloc",
    "could not create a primitive",
    "Failed to serialize proto",
)
_CPUINFO: Final = Path("/proc/cpuinfo")
_STATUS: Final = Path("/proc/self/status")

#: Flags of ``/proc/cpuinfo``, the widest vectors first, and what they are called.
_VECTORS: Final = (
    ("amx_tile", "AMX"),
    ("avx512f", "AVX-512"),
    ("avx2", "AVX2"),
    ("avx", "AVX"),
    ("sve", "SVE"),
    ("asimd", "NEON"),
)


def processor() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_set() -> str | None:
    """The widest vector instructions that the processor has, such as ``AVX-512``."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return next((name for flag, name in _VECTORS if flag in flags), None)


def usable_cpus() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Processes that wait for a processor, the mean of the last minute."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def memory_bytes() -> int | None:
    """The computer's memory."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident_bytes() -> int | None:
    """The memory that this process has now, mapped files included."""
    return _status("VmRSS:")


def peak_resident_bytes() -> int | None:
    """The most memory that this program has had.

    Not ``ru_maxrss``, in which a new process finds the peak of the one that started it.
    """
    return _status("VmHWM:")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of any library says that the operating system refused memory."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _REFUSALS)


def _cpuinfo(key: str) -> str:
    """The first processor's entry called ``key``, or nothing."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.is_file() else []
    found = (line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key)
    return next(found, "")


def _status(field: str) -> int | None:
    lines = _STATUS.read_text(encoding="ascii").splitlines() if _STATUS.is_file() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), None)
