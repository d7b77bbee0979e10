"""What the machine says of this process, and not of another."""

from __future__ import annotations

import subprocess
import sys

from sana_rt import machine

ASK = "from sana_rt import machine; print(machine.peak_resident_bytes())"


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    ballast = b"\1" * (512 << 20)
    assert (machine.peak_resident_bytes() or 0) > len(ballast)
    shown = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(shown.stdout) < 128 << 20
