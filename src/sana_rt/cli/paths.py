"""The files that a command is to write, judged before it works."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sana_rt.errors import UsageError

Named = Mapping[str, Path | None]  # by the option that names the file; None where it was left out


def check(outputs: Named, inputs: Named, *, overwrite: bool = False) -> None:
    """Raise :class:`UsageError` for an output that would overwrite another file of the command.

    Or for one that cannot be written: a folder, or in a place that is not one. Or, unless
    ``overwrite``, for one that exists.
    """
    taken = {os.path.realpath(path): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise UsageError(
                f"{name} and {taken[place]} are the same file, {path}.",
                expected="an output that overwrites no other file of the command.",
            )
        taken[place] = name
        _check_place(name, path)
        if path.exists() and not overwrite:
            raise exists(name, path)


def check_suffix(name: str, path: Path | None, suffix: str) -> None:
    """Raise :class:`UsageError` for a file of another kind than the option writes."""
    if path is not None and path.suffix != suffix:
        raise UsageError(f"{name} {path} does not end in {suffix}.", expected=f"a {suffix} file.")


def exists(name: str, path: Path) -> UsageError:
    """What is raised for an output that would replace a file."""
    return UsageError(
        f"{name} would replace {path}, which exists.",
        expected="a name that is free.",
        remedy="choose another name, or give --overwrite.",
    )


def _check_place(name: str, path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{name} is a folder, {path}.", expected="the path of a file.")
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(
            f"{name} cannot be written: {folder} is not a folder that can be written to.",
            expected="a path below a folder with write permission.",
        )
