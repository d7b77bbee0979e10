"""How the keys of a checkpoint's configuration files are treated: used, required, or ignored.

A file is read against a :class:`Table`, which lists every key that diffusers, transformers or
PEFT write for one class. A key that no table knows is refused: it may be one that changes what
the model computes. The tables are :mod:`sana_rt.export.config_tables`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from sana_rt.errors import CheckpointFormatError

Values: TypeAlias = dict[str, Any]

#: A key without a default: a file without it is refused.
REQUIRED: Final = object()


@dataclass(frozen=True)
class Setting:
    """A value of a file: under which key (with dots for objects in objects), or by default."""

    file: str
    key: str
    value: object
    given: bool

    def __str__(self) -> str:  # noqa: D105
        how = "sets {} to {}" if self.given else "does not set {}, which is then {}"
        return f"{self.file} {how.format(self.key, shown(self.value))}."


@dataclass(frozen=True)
class Used:
    """A key that becomes part of the specification, if it has the type ``kind``.

    ``default`` is what the class itself takes where the file does not say.
    """

    meaning: str
    kind: Any
    default: Any = REQUIRED

    def checked(self, setting: Setting, _: Values) -> object:
        """The value as ``kind``; anything else is a :class:`CheckpointFormatError`."""
        try:
            return msgspec.convert(setting.value, self.kind)
        except msgspec.ValidationError as error:
            raise CheckpointFormatError(
                f"{setting} {error}.", remedy="fetch the configuration again."
            ) from error


@dataclass(frozen=True)
class MustBe:
    """A key of which one meaning is implemented, spelt as any of ``values``."""

    reason: str
    values: tuple[object, ...]
    default: Any = REQUIRED

    def checked(self, setting: Setting, _: Values) -> object:
        """The value, if it is one of ``values``."""
        value = setting.value
        if any(type(value) is type(each) and value == each for each in self.values):
            return value
        expected = " or ".join(shown(each) for each in self.values)
        raise CheckpointFormatError(
            str(setting), expected=f"{expected} ({self.reason}); no other is supported."
        )


@dataclass(frozen=True)
class Follows:
    """A key that must say what follows from keys before it, or one of ``also``."""

    reason: str
    rule: str
    value: Callable[[Values], object]
    also: tuple[object, ...] = ()
    default: Any = REQUIRED

    def checked(self, setting: Setting, before: Values) -> object:
        """The value, if it is what follows from those of the keys ``before``."""
        return MustBe(self.rule, (self.value(before), *self.also)).checked(setting, before)


@dataclass(frozen=True)
class NoEffect:
    """A key that changes nothing that is computed here."""

    reason: str

    def checked(self, setting: Setting, _: Values) -> object:
        """The value, whatever it is."""
        return setting.value


@dataclass(frozen=True)
class Within:
    """A key that holds an object, with a table of its own; null is as good as nothing."""

    meaning: str
    table: Table

    def checked(self, setting: Setting, _: Values) -> object:
        """The values of the object's keys."""
        if setting.value is None:
            return {}
        if not isinstance(setting.value, dict):
            raise CheckpointFormatError(str(setting), expected="an object.")
        return self.table.checked(setting.file, setting.value, f"{setting.key}.")


@dataclass(frozen=True)
class Tokens:
    """A key with tokens of the form ``kind``, which the tokenizer must have."""

    reason: str
    kind: Any

    def checked(self, setting: Setting, before: Values) -> object:
        """The value as ``kind``; anything else is a :class:`CheckpointFormatError`."""
        return Used(self.reason, self.kind).checked(setting, before)


Treatment: TypeAlias = Used | MustBe | Follows | NoEffect | Within | Tokens


@dataclass(frozen=True)
class Rule:
    """What the values of several keys must fulfil together."""

    says: str
    holds: Callable[[Values], bool]


@dataclass(frozen=True)
class Table:
    """Every key of the files of one class.

    ``identity`` is the key that names the class, and the name. ``keys`` are the class's own;
    ``beyond`` are written by other versions or classes and found in its files all the same.
    """

    identity: tuple[str, str]
    keys: Mapping[str, Treatment]
    beyond: Mapping[str, Treatment] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()

    def checked(self, file: str, config: Mapping[str, object], prefix: str = "") -> Values:
        """The values of all keys, with the class's defaults; ``prefix`` is the path of an object.

        Raises :class:`CheckpointFormatError` for an unknown key and for every value that would
        change the result without being implemented.
        """
        treatments = {**self.keys, **self.beyond}
        unknown = [prefix + key for key in sorted(config.keys() - treatments.keys())]
        if unknown:
            raise CheckpointFormatError(
                f"{file} has {shown(unknown)}, which {self.identity[1]} is not known to have.",
                expected="keys whose effect is known (docs/config-keys.md).",
                remedy="remove a key only if you know that it changes nothing.",
            )
        values: Values = {}
        for key, treatment in treatments.items():
            value = config.get(key, getattr(treatment, "default", None))
            if value is REQUIRED:
                raise CheckpointFormatError(
                    f"{file} lacks the field '{prefix}{key}'.",
                    remedy="fetch the configuration again.",
                )
            setting = Setting(file, prefix + key, value, key in config)
            if setting.given or hasattr(treatment, "default"):
                values[key] = treatment.checked(setting, values)
        for rule in self.rules:
            if not rule.holds(values):
                raise CheckpointFormatError(
                    f"The values of {file} contradict each other.", expected=f"{rule.says}."
                )
        return values


def choose(path: Path, config: Mapping[str, object], *tables: Table) -> Values:
    """The values of ``config`` by the one of ``tables`` whose class it names."""
    key, _ = tables[0].identity
    for table in tables:
        if config.get(key) == table.identity[1]:
            return table.checked(str(path), config)
    raise CheckpointFormatError(
        f"{path} is the configuration of {shown(config.get(key))}.",
        expected=f"one of {', '.join(table.identity[1] for table in tables)}.",
    )


def shown(value: object) -> str:
    """``value`` as Python writes it, cut where it is long or deep."""
    short = reprlib.Repr()
    short.maxstring = 100
    return short.repr(value)
