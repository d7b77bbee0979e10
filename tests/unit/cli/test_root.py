"""The root command: what it lists, how it fails, how it is interrupted."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

import sana_rt
from sana_rt import cli
from sana_rt.cli import output, progress
from sana_rt.cli.command import Command
from sana_rt.errors import BackendError, UsageError

# What runs in the background of a script ignores SIGINT; what a terminal shows does not.
WAITS = """
import signal, sys, types
import click
from sana_rt import cli

signal.signal(signal.SIGINT, signal.default_int_handler)

@click.command()
def command() -> None:
    print("started", flush=True)
    sys.stdin.read()

module = types.ModuleType("sana_rt.cli.doctor")
module.command = command
sys.modules["sana_rt.cli.doctor"] = module
sys.argv = ["sana-rt", "doctor"]
cli.main()
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], Result]:
    """Run ``sana-rt generate`` with a function in its place."""

    def run_with(body: Callable[[], None]) -> Result:
        module = types.ModuleType("sana_rt.cli.generate")
        module.command = click.Command("generate", callback=body)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sana_rt.cli.generate", module)
        return CliRunner().invoke(cli.cli, ["generate"])

    return run_with


def _raise(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def test_help_lists_every_command_without_importing_any() -> None:
    code = "import sys; from sana_rt.cli import cli; cli(['--help'], standalone_mode=False); "
    code += "print([name for name in sys.modules if name.startswith('sana_rt.cli.')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text = " ".join(shown.stdout.split())  # summaries may be wrapped
    for name, entry in cli.COMMANDS.items():
        assert f" {name} {entry.summary}" in text
    assert shown.stdout.endswith("[]\n")


def test_version() -> None:
    result = CliRunner().invoke(cli.cli, ["--version"])
    assert result.output == f"sana-rt, version {sana_rt.__version__}\n"


def test_an_unknown_command_is_a_usage_error_with_a_suggestion() -> None:
    result = CliRunner().invoke(cli.cli, ["inspekt"])
    assert result.exit_code == 2
    assert "Did you mean 'inspect'?" in result.stderr
    assert result.stdout == ""


def test_an_unknown_option_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli.cli, ["doctor", "--jsn"])
    assert result.exit_code == 2
    assert "--jsn" in result.stderr


def test_a_typed_error_is_shown_in_three_parts(run: Callable[..., Result]) -> None:
    result = run(_raise(BackendError("No card.", expected="a card.", remedy="plug one in.")))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "Error: No card.",
        "Expected: a card.",
        "To fix: plug one in.",
    ]


def test_an_option_that_cannot_be_honoured_exits_as_a_usage_error(
    run: Callable[..., Result],
) -> None:
    assert run(_raise(UsageError("--a excludes --b."))).exit_code == 2


def test_a_missing_package_names_the_extra(run: Callable[..., Result]) -> None:
    result = run(_raise(ModuleNotFoundError("No module named 'numpy'", name="numpy")))
    assert result.exit_code == 1
    assert "'numpy'" in result.stderr
    assert 'To fix: pip install "sana-rt[cpu]"' in result.stderr


def test_a_missing_module_of_our_own_is_a_bug_and_traced_back(run: Callable[..., Result]) -> None:
    result = run(_raise(ModuleNotFoundError("lost", name="sana_rt.lost")))
    assert isinstance(result.exception, ModuleNotFoundError)


def test_a_bug_is_traced_back(run: Callable[..., Result]) -> None:
    assert isinstance(run(_raise(ZeroDivisionError())).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)"),
    ],
    ids=["python", "torch", "safetensors"],
)
def test_memory_that_the_system_refuses_is_said(
    run: Callable[..., Result], error: Exception
) -> None:
    result = run(_raise(error))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: The system refused memory")
    assert "To fix: free memory" in result.stderr


def test_what_the_operating_system_refuses_is_said_with_the_file(
    run: Callable[..., Result],
) -> None:
    result = run(_raise(PermissionError(errno.EPERM, "Operation not permitted", "out/a.plan")))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "Error: Operation not permitted: out/a.plan."


def test_an_interrupt_ends_with_one_line_and_130(run: Callable[..., Result]) -> None:
    result = run(_raise(KeyboardInterrupt()))
    assert result.exit_code == 130
    assert result.stderr.split() == ["Interrupted."]


def test_ctrl_c_from_a_terminal() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert process.stderr is not None
        os.kill(process.pid, signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert errors.split() == ["Interrupted."]


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    shown = subprocess.run(
        f"{sys.executable} -m sana_rt inspect --schema | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "{\n"
    assert "Traceback" not in shown.stderr


def test_an_option_given_twice_is_refused_and_a_list_is_not() -> None:
    seen: list[tuple[int, tuple[str, ...]]] = []

    @click.command(cls=Command)
    @click.option("-n", "--number", type=int)
    @click.option("--word", multiple=True)
    def command(number: int, word: tuple[str, ...]) -> None:
        seen.append((number, word))

    once = CliRunner().invoke(command, ["--word", "a", "-n", "1", "--word", "b"])
    assert once.exit_code == 0, once.output
    assert seen == [(1, ("a", "b"))]
    for twice in (["-n", "1", "--number", "2"], ["-n1", "-n1"], ["-q", "--quiet"]):
        result = CliRunner().invoke(command, twice)
        assert result.exit_code == 2
        assert "is given 2 times" in result.stderr
    assert len(seen) == 1


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_one_of_ours(name: str) -> None:
    command = importlib.import_module(f"sana_rt.cli.{name}").command
    assert isinstance(command, Command)


def test_quiet_leaves_errors_and_data() -> None:
    @click.command(cls=Command)
    def command() -> None:
        output.note("Working")
        list(progress.counted("ab", "Reading", 2))
        click.echo("data")

    loud, quiet = (CliRunner().invoke(command, given) for given in ([], ["--quiet"]))
    assert "Working" in loud.stderr
    assert "Reading" in loud.stderr
    assert quiet.stderr == ""
    assert loud.stdout == quiet.stdout == "data\n"
