"""The library that spoils file operations and allocations: built, loaded, asked."""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("interpose.c")
COMPILER: Final = shutil.which("gcc") or shutil.which("cc")

#: Bytes of an allocation that counts. Tensors, weights and buffers are larger, and what the
#: interpreter lives on is smaller.
LARGE: Final = 64 << 10


class Kind(enum.Enum):
    """What happens at a point: nothing, an error once, errors from then on, or the end."""

    NOTHING = 0
    ONCE = 1
    FROM_THEN_ON = 2
    KILL = 3


@dataclass(frozen=True)
class Fault:
    """The ``nth`` file operation, or large allocation, goes wrong."""

    kind: Kind = Kind.NOTHING
    nth: int = 0
    error: int = errno.EIO
    allocations: bool = False


def build(folder: Path) -> Path:
    """Compile the library into ``folder``."""
    assert COMPILER is not None
    library = folder / "interpose.so"
    command = [COMPILER, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


class Interposer:
    """The library in a process that was started with it."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._library.faults_what.restype = ctypes.c_char_p
        self._library.faults_counted.restype = ctypes.c_long

    def arm(self, folder: str, fault: Fault, log: int) -> None:
        """Count from now on, below ``folder``, and list file operations in the file ``log``."""
        numbers = (int(fault.allocations), ctypes.c_long(LARGE), ctypes.c_long(fault.nth))
        self._library.faults_arm(folder.encode(), *numbers, fault.kind.value, fault.error, log)

    def counted(self, *, allocations: bool) -> int:
        """How many points there were."""
        return int(self._library.faults_counted(int(allocations)))

    def spoilt(self) -> str | None:
        """The point that was spoilt, or None if it was not reached."""
        if not self._library.faults_spoilt():
            return None
        what: bytes = self._library.faults_what()
        return what.decode(errors="replace")
