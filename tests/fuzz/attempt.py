"""A spoilt file, read within limits of time and memory."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from tests.fuzz.target import Target

from sana_rt import machine
from sana_rt.errors import SanaRTError

#: Of processor time for one read, so that a busy machine is no finding; the median is below 5 ms.
SECONDS: Final = 5.0
#: On the clock, for what waits; far above what a busy machine makes of the other limit.
WALL_SECONDS: Final = 120.0
#: Growth of the process in one read. The largest seed has 200 kB.
BYTES: Final = 256 << 20

_CLEAR_REFS: Final = Path("/proc/self/clear_refs")
_RESETS_PEAK: Final = "5"  # makes what is resident now the peak


class _TooLong(BaseException):
    """Past all `except Exception`."""


@dataclass(frozen=True)
class Finding:
    """A spoilt file and what reading it did."""

    target: str
    data: bytes
    what: str
    where: str = ""  # two findings in one place are one

    def keep(self, folder: Path) -> Path:
        """Write what it was read from."""
        path = folder / self.target / hashlib.sha256(self.data).hexdigest()[:16]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data)
        return path


@dataclass(frozen=True)
class Attempt:
    """What a read cost, and what it found if it did."""

    seconds: float  # of the processor
    bytes: int
    finding: Finding | None = None


def attempt(target: Target, data: bytes, folder: Path) -> Attempt:
    """Read ``data`` as a file of the target in ``folder``."""
    path = folder / f"spoilt{target.suffix}"
    path.write_bytes(data)
    _CLEAR_REFS.write_text(_RESETS_PEAK)
    memory, started = machine.resident_bytes() or 0, time.process_time()
    what, where = _read(target, path)
    seconds = time.process_time() - started
    grown = max(0, (machine.peak_resident_bytes() or 0) - memory)
    if not what and grown > BYTES:
        what = f"took {grown:,} bytes of memory"
    return Attempt(seconds, grown, Finding(target.name, data, what, where) if what else None)


def _read(target: Target, path: Path) -> tuple[str, str]:
    """What is wrong with a read, and where; nothing if all is well."""
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
    except SanaRTError:
        pass
    except _TooLong:
        return f"took more than {SECONDS} s", ""
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return traceback.format_exc(), f"{type(error).__name__} {frame.filename}:{frame.lineno}"
    return "", ""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    timers = {signal.ITIMER_PROF: SECONDS, signal.ITIMER_REAL: WALL_SECONDS}
    signal.signal(signal.SIGPROF, _stop)
    signal.signal(signal.SIGALRM, _stop)
    try:
        for timer, seconds in timers.items():
            signal.setitimer(timer, seconds)
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)


def _stop(_: int, __: FrameType | None) -> None:
    raise _TooLong
