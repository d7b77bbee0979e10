"""Python's clip of the benchmark of the native library; imports nothing that playing does not."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

import onnxruntime

import sana_rt
from sana_rt import machine


class Clock:
    """Times the steps of a clip, and ONNX Runtime's part of them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._run = onnxruntime.InferenceSession.run_with_iobinding
        self._run_seconds = self._last = self._last_run = 0.0

    def run(self, *arguments: Any) -> None:
        """In the place of ``InferenceSession.run_with_iobinding``."""
        started = time.monotonic()
        self._run(*arguments)
        self._run_seconds += time.monotonic() - started

    def progress(self, at: Any) -> None:
        """The first step has what comes before it, too, and is left out."""
        now = time.monotonic()
        if at.stage == "denoise" and at.done > 1:
            run_seconds = self._run_seconds - self._last_run
            self.steps.append({"seconds": now - self._last, "run_seconds": run_seconds})
        self._last, self._last_run = time.monotonic(), self._run_seconds


def play(begin: float) -> None:
    """Play a clip in this process: ``BUNDLE PROMPT THREADS`` in ``sys.argv``; JSON to stdout."""
    clock = Clock()
    # A function is bound to its session, as a method of the clock would not be.
    onnxruntime.InferenceSession.run_with_iobinding = lambda *given: clock.run(*given)  # noqa: PLW0108
    _, bundle, prompt, threads = sys.argv
    digest, first = hashlib.sha256(), 0.0
    with sana_rt.open(bundle, threads=int(threads)) as player:
        for frames in player.generate(prompt, progress=clock.progress):
            first = first or time.monotonic()
            digest.update(frames.tobytes())
    turn: dict[str, Any] = {"main": begin, "first_frame": first, "last_frame": time.monotonic()}
    turn |= {"peak_resident_bytes": machine.peak_resident_bytes(), "steps": clock.steps}
    sys.stdout.write(json.dumps(turn | {"frames": digest.hexdigest()}))
