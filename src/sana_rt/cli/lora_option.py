"""The option ``--lora FILE[=SCALE]``, which several commands have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import click


class Chosen(NamedTuple):
    """A LoRA as it is given: a file or a folder, and how much of it."""

    path: Path
    scale: float


class _Lora(click.ParamType[Chosen]):
    name = "FILE[=SCALE]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Chosen:
        text = str(value)
        path, equals, scale = text.rpartition("=")
        if not equals or Path(text).exists():
            path, scale = text, "1"
        if not Path(path).exists():
            self.fail(f"There is no file {path!r}.", param, ctx)
        try:
            number = float(scale)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"The scale of {path!r} is {scale!r}, which is no number.", param, ctx)
        return Chosen(Path(path), number)


lora_option = click.option(
    "--lora",
    "loras",
    type=_Lora(),
    multiple=True,
    help="LoRA to merge into the transformer, and how much of it: a .safetensors file, or the "
    "folder that PEFT or diffusers saved. May be given several times.  [default scale: 1]",
)
