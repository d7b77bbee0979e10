"""The simulated ``libcuda.so.1``: compiled when its source changes, kept in pytest's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import filelock
import pytest

SOURCE: Final = Path(__file__).parent / "device"
SONAME: Final = "libcuda.so.1"
FLAGS: Final = (
    *("-std=c++20", "-O1", "-g", "-fPIC", "-pthread", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Wno-unused-parameter"),
)
#: The enumerations of cuda-python that the source uses.
ENUMERATIONS: Final = (
    "CUresult",
    "CUdevice_attribute",
    "CUstream_flags",
    "CUevent_flags",
    "CUstreamCaptureMode",
    "CUstreamCaptureStatus",
    "CUdriverProcAddressQueryResult",
)


def folder(config: pytest.Config) -> Path:
    """The folder with the library, for LD_LIBRARY_PATH; skips where there is no compiler."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("the simulated device needs a C++ compiler: the Debian package g++")
    cache = config.cache
    assert cache is not None
    constants = _constants()
    root = cache.mkdir("simulated-device") / _key(constants)
    with filelock.FileLock(root.with_suffix(".lock")):
        if not root.is_dir():
            partial = root.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            (partial / "constants.h").write_text(constants)
            _compile(compiler, partial)
            partial.rename(root)
    return root


def _compile(compiler: str, root: Path) -> None:
    """Compile every file in a process of its own, and link."""
    compile_one = [compiler, *FLAGS, f"-I{root}", "-c"]
    objects = {str(source): str(root / f"{source.stem}.o") for source in SOURCE.glob("*.cpp")}
    running = [
        subprocess.Popen([*compile_one, source, "-o", made]) for source, made in objects.items()
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise ChildProcessError("the simulated device does not compile")
    link = [compiler, "-shared", "-pthread", f"-Wl,-soname,{SONAME}", *objects.values()]
    subprocess.run([*link, "-o", str(root / SONAME)], check=True)


def _key(constants: str) -> str:
    digest = hashlib.sha256(constants.encode() + Path(__file__).read_bytes())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _constants() -> str:
    """A header with CUDA's enumerations, from the installed cuda-python."""
    from cuda.bindings import driver

    lines = ["#pragma once"]
    for name in ENUMERATIONS:
        members = getattr(driver, name).__members__.items()
        values = ", ".join(f"{member} = {int(value)}" for member, value in members)
        lines.append(f"enum {name} : int {{ {values} }};")
    cases = "".join(
        f'    case {member}: return "{member}";\n'
        for member, value in driver.CUresult.__members__.items()
        if value.name == member
    )
    lines.append(
        f"inline const char* name_of(CUresult result) {{\n  switch (result) {{\n{cases}"
        "    default: return nullptr;\n  }\n}"
    )
    return "\n".join(lines) + "\n"
