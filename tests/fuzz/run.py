"""Fuzz for as long as wanted: ``python -m tests.fuzz.run --seconds 3600``.

Each finding, an exception that is no SanaRTError, a read that takes too long or too much memory,
is kept as a file and shown; the exit code is 1 if there is one.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

import click
from tests.fuzz.targets import TARGETS, Target

from sana_rt import machine
from sana_rt.errors import SanaRTError

#: A read of a small file; on a busy machine the median is below 5 ms.
SECONDS = 5
#: Growth of the process in one read. The largest seed has 200 kB.
BYTES = 256 << 20


class _TooLong(BaseException):
    """Past all `except Exception`."""


@dataclass(frozen=True)
class Finding:
    """A spoilt file and what reading it did."""

    target: str
    data: bytes
    what: str
    where: str = ""  # two findings in one place are one


def attempt(target: Target, data: bytes, folder: Path) -> Finding | None:
    """Read ``data`` as a file of the target."""
    path = folder / f"spoilt{target.suffix}"
    path.write_bytes(data)
    before = machine.peak_resident_bytes() or 0
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
    except SanaRTError:
        pass
    except _TooLong:
        return Finding(target.name, data, f"took more than {SECONDS} s")
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} {frame.filename}:{frame.lineno}"
        return Finding(target.name, data, traceback.format_exc(), where)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = (machine.peak_resident_bytes() or 0) - before
    if grown > BYTES:
        return Finding(target.name, data, f"took {grown:,} bytes of memory")
    return None


def _stop(_: int, __: FrameType | None) -> None:
    raise _TooLong


def spoilt(target: Target, folder: Path, seed: int) -> Iterator[bytes]:
    """Spoilt files without end, the same for the same ``seed``."""
    random = Random(seed)
    seeds = target.seeds(folder)
    while True:
        data = random.choice(seeds)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            data = target.mutate(data, random)
        yield data


def keep(finding: Finding, folder: Path) -> Path:
    """Write what a finding was read from."""
    name = hashlib.sha256(finding.data).hexdigest()[:16]
    path = folder / finding.target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(finding.data)
    return path


@click.command()
@click.option("--seconds", default=300.0, show_default=True, help="How long, over all targets.")
@click.option("--seed", default=0, show_default=True, help="Of the mutations.")
@click.option("--target", "names", multiple=True, type=click.Choice([t.name for t in TARGETS]))
@click.option("--findings", type=click.Path(path_type=Path), default=Path("out/fuzz"))
def main(seconds: float, seed: int, names: tuple[str, ...], findings: Path) -> None:
    """Spoil files and read them."""
    chosen = [target for target in TARGETS if not names or target.name in names]
    found: dict[tuple[str, str], Path] = {}
    for target in chosen:
        count, end = 0, time.monotonic() + seconds / len(chosen)
        with tempfile.TemporaryDirectory() as scratch:
            for data in spoilt(target, Path(scratch), seed):
                finding = attempt(target, data, Path(scratch))
                count += 1
                if finding is not None:
                    key = (target.name, finding.where or finding.what)
                    if key not in found:
                        found[key] = keep(finding, findings)
                        click.echo(f"{found[key]}\n{finding.what}")
                if time.monotonic() > end:
                    break
        click.echo(f"{target.name}: {count:,} files read", err=True)
    click.echo(f"{len(found)} kinds of findings")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
