"""A process that has imported everything, from which commands are forked.

A job is a line of JSON on stdin, its outcome one on stdout. It has to be started with the library
of :mod:`tests.faults.preload` in ``LD_PRELOAD``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final, NoReturn

from tests.faults.preload import Fault, Interposer, Kind

#: What a command's exit code is if an exception went past it.
TRACEBACK: Final = 70
_WAIT: Final = 0.002


def main() -> None:
    """Do jobs until stdin ends."""
    interposer = Interposer()
    _import()
    for line in sys.stdin:
        job = json.loads(line)
        answer = _warm(job["warm"]) if "warm" in job else _run(job, interposer)
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def _import() -> None:
    """What the commands would import."""
    for name in ("export", "quantize", "build", "generate", "stream"):
        importlib.import_module(f"sana_rt.cli.{name}")
    for name in (
        "sana_rt.engines.builder",
        "sana_rt.export.onnx_export",
        "sana_rt.quantize.calibrate",
        "sana_rt.quantize.variant",
        "sana_rt.runtime.session",
        "sana_rt.runtime.video",
    ):
        importlib.import_module(name)


def _warm(checkpoint: str) -> dict[str, Any]:
    """Trace the graphs of a checkpoint, which takes a minute and writes nothing."""
    from sana_rt.export import onnx_export
    from sana_rt.export.checkpoint import open_checkpoint
    from sana_rt.export.graphs import definitions

    trace, traced = onnx_export.trace, {}
    opened = open_checkpoint(Path(checkpoint))
    for definition in definitions(opened, "float32"):
        if definition.topology not in traced:
            dims = onnx_export.TRACE_SIZES.dims(opened.spec)
            traced[definition.topology] = trace(definition, dims)
    onnx_export.trace = lambda definition, _: traced[definition.topology]
    return {"topologies": len(traced)}


def _run(job: dict[str, Any], interposer: Interposer) -> dict[str, Any]:
    """Fork the command and wait for it."""
    spec = job["fault"]
    fault = Fault(Kind[spec["kind"]], spec["nth"], spec["error"], spec["allocations"])
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        _play(job, fault, interposer)
    timed_out = False
    while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
        if time.monotonic() - started > job["seconds"]:
            os.kill(process, signal.SIGKILL)
            timed_out = True
        time.sleep(_WAIT)
    return {
        "exit_code": None if timed_out else os.waitstatus_to_exitcode(ended[1]),
        "points": interposer.counted(allocations=fault.allocations),
        "spoilt": interposer.spoilt(),
    }


def _play(job: dict[str, Any], fault: Fault, interposer: Interposer) -> NoReturn:
    """Be the command."""
    code = TRACEBACK
    try:
        os.chdir(job["folder"])
        os.environ["TMPDIR"] = os.environ["HOME"] = job["folder"]
        _redirect(job["output"])
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if job["log"] else -1
        from sana_rt import cli

        interposer.arm(job["folder"], fault, log)
        cli.cli.main(job["arguments"], prog_name="sana-rt")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - this is what is looked for
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)


if __name__ == "__main__":
    main()
