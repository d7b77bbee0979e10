"""The page docs/config-keys.md: ``python -m sana_rt.export.config_page > docs/config-keys.md``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping

from sana_rt.export.config_keys import (
    REQUIRED,
    Follows,
    MustBe,
    Tokens,
    Treatment,
    Used,
    Within,
)
from sana_rt.export.config_tables import DOCUMENTED

_HEAD = """\
# Keys of configuration files

<!-- Written by `python -m sana_rt.export.config_page`. -->

What `sana-rt export` does with every key that diffusers, transformers and PEFT write for the
classes that it reads:

- *used*: the value becomes part of the bundle's model;
- *must be*: one meaning is implemented, and a file with another is refused;
- *no effect*: nothing that is computed here depends on it, so any value is taken.

A file without a key means what the class itself takes then, the default; "required" means that
it is refused. A key that is not listed is refused, because it may be one that matters. Numbers
must be finite and below a bound far above every model; a key must not be there twice.

`tokenizer.json` itself is used as it is. What transformers would make of it with the files beside
it must be the same tokens: `special_tokens_map.json` is read like `tokenizer_config.json`, and the
tokens of `added_tokens.json` must be in it with their numbers.

A folder whose `model_index.json` names no class for a part that is there is refused, and so is one
without the scheduler that it names.

A block-causal model's scheduler file is not read: the model is distilled for steps of its own.
Nor are the sizes of a DC-AE autoencoder, which has no graphs.
"""


def page() -> str:
    """The page as Markdown, one table a class."""
    parts = [_HEAD]
    for title, table in DOCUMENTED.items():
        parts += [f"## {title}", f"`{table.identity[0]}` is `{table.identity[1]}`.\n"]
        parts += [*_HEADER, *_rows(table.keys)]
        if table.beyond:
            parts += ["\nBeyond the class's own:\n", *_HEADER, *_rows(table.beyond)]
        if table.rules:
            parts += ["\nTogether: " + "; ".join(rule.says for rule in table.rules) + "."]
        parts += [""]
    return "\n".join(parts)


_HEADER = ("| key | treatment | default | |", "|---|---|---|---|")


def _rows(keys: Mapping[str, Treatment], prefix: str = "") -> Iterator[str]:
    for key, treatment in keys.items():
        if isinstance(treatment, Within):
            yield from _rows(treatment.table.keys, f"{prefix}{key}.")
        else:
            kind, why = _words(treatment)
            yield f"| `{prefix}{key}` | {kind} | {_default(treatment)} | {why} |"


def _words(treatment: Treatment) -> tuple[str, str]:
    match treatment:
        case Used():
            return "used", treatment.meaning
        case MustBe():
            return f"must be {_values(treatment.values)}", _sentence(treatment.reason)
        case Follows():
            also = f" or {_values(treatment.also)}" if treatment.also else ""
            return f"must be {treatment.rule}{also}", treatment.reason
        case Within():
            return "an object", treatment.meaning
        case Tokens():
            return "must be in tokenizer.json", treatment.reason
        case _:
            return "no effect", treatment.reason


def _default(treatment: Treatment) -> str:
    default = getattr(treatment, "default", None)
    if default is REQUIRED:
        return "required"
    return _json(default) if hasattr(treatment, "default") else ""


def _values(values: tuple[object, ...]) -> str:
    return " or ".join(_json(each) for each in values)


def _json(value: object) -> str:
    return f"`{json.dumps(value)}`"


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}."


if __name__ == "__main__":
    sys.stdout.write(page())
