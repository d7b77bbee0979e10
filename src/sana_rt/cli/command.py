"""What all commands have in common: how options are read, and options that several have."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import click

_QUIET: Final = "sana_rt.quiet"


class Command(click.Command):
    """A command that has ``--quiet``, and refuses an option that is given twice.

    click would let the last one win without a word.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.append(
            click.Option(
                ["-q", "--quiet"],
                is_flag=True,
                expose_value=False,
                callback=_silence,
                help="Show no progress and no notes; errors are still shown.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments."""
        if not ctx.resilient_parsing:
            self._check_once(ctx, args)
        return super().parse_args(ctx, args)

    def _check_once(self, ctx: click.Context, args: list[str]) -> None:
        """Raise :class:`click.UsageError` for an option that is given twice and is no list."""
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        counts = Counter(each for each in order if isinstance(each, click.Option))
        for option, count in counts.items():
            if count > 1 and not option.multiple:
                name = max(option.opts, key=len)
                raise click.UsageError(
                    f"Option '{name}' is given {count} times; once is right.", ctx
                )


def is_quiet() -> bool:
    """Whether the command that runs was told to be."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


def _silence(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[_QUIET] = True


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print what was made, and how, as JSON."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that exist.")
