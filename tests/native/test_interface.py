"""What a program sees of the library: its symbols, its headers, and how it is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INCLUDE = ROOT / "runtime/native/include"
EXAMPLES = ROOT / "examples/native"
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
LANGUAGES = {"c11": "sana_rt.h", "c++20": "sana_rt.hpp"}


def _run(*command: str | Path, **environment: str) -> str:
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    return ran.stdout


def test_only_the_functions_of_the_header_are_visible(build: Path) -> None:
    listed = _run("nm", "--dynamic", "--defined-only", build / "libsana_rt.so").splitlines()
    kinds = {name: kind for _, kind, name in (line.split() for line in listed)}
    assert kinds.pop("SANA_RT_1") == "A"  # the version of the others
    header = (INCLUDE / "sana_rt.h").read_text()
    declared = re.findall(r"^SANA_API .*?(sana_\w+)\(", header, re.MULTILINE)
    assert set(kinds) == {f"{name}@@SANA_RT_1" for name in declared}
    assert set(kinds.values()) == {"T"}


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("standard", LANGUAGES)
def test_headers_are_compiled_without_a_warning(
    compiler: str, standard: str, tmp_path: Path
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    source = tmp_path / f"source.{'c' if standard == 'c11' else 'cpp'}"
    source.write_text(f'#include "{LANGUAGES[standard]}"\n')
    _run(compiler, f"-std={standard}", *WARNINGS, "-fsyntax-only", f"-I{INCLUDE}", source)


@pytest.fixture(scope="module")
def prefix(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library is installed."""
    folder = tmp_path_factory.mktemp("prefix")
    _run("cmake", "--install", build, "--prefix", folder)
    return folder


def test_a_project_finds_the_library(prefix: Path, small_bundle: Path, tmp_path: Path) -> None:
    """The examples, with mp4 if FFmpeg's libraries are there."""
    _run("cmake", "-S", EXAMPLES, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    _run("cmake", "--build", tmp_path, "--parallel", "2")
    play = f"cd {tmp_path} && ./play {small_bundle} 'a red circle'"
    _run("sh", "-c", play)
    libraries = ("libavcodec", "libavformat", "libavutil", "libswscale")
    found = subprocess.run(["pkg-config", "--exists", *libraries], check=False).returncode == 0
    assert (tmp_path / f"out.{'mp4' if found else 'y4m'}").stat().st_size > 0
    _run("sh", "-c", play.replace("./play", "./play_c"))
    pictures = sorted(tmp_path.glob("frame*.ppm"))
    assert pictures
    assert pictures[0].read_bytes().startswith(b"P6 64 64 255\n")


def test_pkg_config_finds_the_library(prefix: Path, small_bundle: Path, tmp_path: Path) -> None:
    """The same program, writing Y4M."""
    found = {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    flags = _run("pkg-config", "--cflags", "--libs", "sana_rt", **found).split()
    sources = (EXAMPLES / name for name in ("play.cpp", "y4m_video.cpp"))
    program = tmp_path / "play"
    _run("g++", "-std=c++20", *WARNINGS, *sources, *flags, "-o", program)
    _run(
        "sh", "-c", f"cd {tmp_path} && ./play {small_bundle} 'a red circle'",
        LD_LIBRARY_PATH=str(prefix / "lib"),
    )  # fmt: skip
    assert (tmp_path / "out.y4m").read_bytes().startswith(b"YUV4MPEG2 W64 H64 ")


def test_the_program_of_the_page(build: Path, small_bundle: Path, tmp_path: Path) -> None:
    """As docs/native.md says, word by word, with CMake and without."""
    page = (ROOT / "docs/native.md").read_text()
    folder = tmp_path / "out/program"
    folder.mkdir(parents=True)
    for language, name in {"cmake": "CMakeLists.txt", "cpp": "program.cpp"}.items():
        (content,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        (folder / name).write_text(content)
    shutil.copytree(small_bundle, tmp_path / "out/demo/bundle")
    _run("cmake", "--install", build, "--prefix", tmp_path / "out/native")
    blocks = [
        one for one in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "out/program" in one
    ]
    assert len(blocks) == 2
    for commands in blocks:
        printed = _run("sh", "-c", f"cd {tmp_path}\nset -e\n{commands}")
        counts = re.findall(r"^(\d+) of 64 x 64$", printed, re.MULTILINE)
        assert sum(map(int, counts)) == 9
