"""The command line: one module a command, imported when the command runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from sana_rt import __version__, interrupts, machine
from sana_rt.errors import MissingDependencyError, SanaRTError, SystemMemoryError, UsageError
from sana_rt.files import storage_error


class Entry(NamedTuple):
    """A command: its line in the list, and the extra whose packages it imports."""

    summary: str
    extra: str | None = None


COMMANDS: Final[dict[str, Entry]] = {
    "fetch": Entry("Download a checkpoint at a fixed revision.", "build"),
    "export": Entry("Convert a checkpoint to a bundle of ONNX graphs.", "build"),
    "quantize": Entry("Add NVFP4 variants to a bundle.", "build,cpu"),
    "build": Entry("Build the TensorRT engines (plans) of a bundle.", "build"),
    "inspect": Entry("Show the contents of a bundle."),
    "remove": Entry("Remove variants or plans from a bundle."),
    "verify": Entry(
        "Check every graph against its module and every file against its hash.", "build"
    ),
    "bound": Entry("Compute a lower bound on a model's run time on a card.", "build"),
    "generate": Entry("Generate a video from a prompt.", "cpu"),
    "stream": Entry("Generate a long video at constant memory; stop and resume it.", "cpu"),
    "sensitivity": Entry("Measure how much error quantizing each layer causes.", "build,bench,cpu"),
    "quality": Entry("Measure how much quality quantization costs.", "bench,cpu"),
    "list": Entry("List recipes, models, cards and workloads, and the variants of a bundle."),
    "bench": Entry("Measure how fast variants are, beside each other and diffusers.", "bench,cpu"),
    "compare": Entry("Compare two reports of `sana-rt bench`.", "bench,cpu"),
    "demo": Entry("Run the whole workflow with a small random checkpoint.", "build,cpu"),
    "doctor": Entry("Show what works on this machine and what to install."),
}


class Failure(click.ClickException):
    """Shows a :class:`SanaRTError` on stderr and exits with 1."""

    def __init__(self, error: SanaRTError) -> None:
        from sana_rt.cli.printable import printable

        super().__init__(printable(str(error)))


class UsageFailure(Failure):
    """Shows a :class:`UsageError`; exits with 2, as click does for options it refuses."""

    exit_code = 2


class LazyCommand(click.Command):
    """The place of a command in the list; its module is imported when it is called."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The context of the real command."""
        module = importlib.import_module(f"sana_rt.cli.{self.name}")
        command: click.Command = module.command
        return command.make_context(info_name, args, parent, **extra)


class Root(click.Group):
    """Lists commands in the order of the work, and turns errors into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names of the commands, in the order they are used."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a :class:`SanaRTError` is shown, not traced back."""
        try:
            with interrupts.terminable():
                return super().invoke(ctx)
        except UsageError as error:
            raise UsageFailure(error) from error
        except SanaRTError as error:
            raise Failure(error) from error
        except ModuleNotFoundError as error:
            raise Failure(_missing(str(ctx.invoked_subcommand), error)) from error
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            where = Path(error.filename or ".")
            raise Failure(storage_error(error, where)) from error
        except Exception as error:
            if not machine.is_out_of_memory(error):
                raise
            raise Failure(_refused_memory(error)) from error
        except KeyboardInterrupt as interrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(interrupts.exit_code(interrupt))


def _missing(name: str, error: ModuleNotFoundError) -> MissingDependencyError:
    extra = COMMANDS[name].extra
    if extra is None or str(error.name).startswith("sana_rt"):
        raise error
    return MissingDependencyError(
        f"`sana-rt {name}` needs the package {error.name!r}, which is not installed.",
        expected=f"the packages of sana-rt[{extra}].",
        remedy=f'pip install "sana-rt[{extra}]"',
    )


def _refused_memory(error: Exception) -> SystemMemoryError:
    first = next(iter(str(error).splitlines()), "")
    return SystemMemoryError(
        f"The system refused memory{f': {first}' if first else '.'}",
        remedy="free memory that other programs use, or ask for less: a smaller or shorter clip, "
        "fewer threads.",
    )


_EXAMPLE = """\
SANA-Video on RTX cards and CPUs.

`sana-rt export` converts a checkpoint to a bundle, a directory of ONNX graphs with a
manifest; `sana-rt generate` makes a video from a bundle and a prompt, without PyTorch.

\b
Example:
  sana-rt demo --output out/demo "a red circle moving to the right"
"""

cli = Root(
    name="sana-rt",
    help=_EXAMPLE,
    commands={
        name: LazyCommand(name, help=entry.summary, short_help=entry.summary)
        for name, entry in COMMANDS.items()
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
cli = click.version_option(__version__, prog_name="sana-rt")(cli)


def main() -> None:
    """Run the ``sana-rt`` command."""
    sys.exit(cli.main(prog_name="sana-rt"))
