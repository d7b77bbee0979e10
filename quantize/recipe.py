"""Recipes: which layers become NVFP4 or FP8, which stay BF16, and why.

A layer is a matrix product with a weight; it is called by its graph and its node, such as
``block_03/attn1.to_q``. Layers that no rule names stay as they are.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta

from sana_rt import documents, graph_names
from sana_rt.documents import DocumentError
from sana_rt.errors import RecipeError, UsageError
from sana_rt.manifest import Form
from sana_rt.model_spec import Frozen

Format = Literal["nvfp4", "fp8", "unquantized"]

_RECIPES: Final = Path(__file__).parent / "recipes"
_NAME: Final = r"^[a-z0-9][a-z0-9-]{0,31}$"
Share = Annotated[float, Meta(ge=0, le=1)]


class Rule(Frozen, frozen=True):
    """Layers by patterns (``*``, ``?``, ``[abc]``) on their names, and what becomes of them.

    ``depth`` restricts a rule to the blocks from one share of all blocks up to another: of 20
    blocks, [0.3, 1.0] takes the last 14.
    """

    layers: Annotated[tuple[str, ...], Meta(min_length=1)]
    format: Format
    reason: str
    source: str
    depth: tuple[Share, Share] | None = None


class Recipe(Frozen, frozen=True):
    """Rules that no two layers share; ``name`` becomes part of the variant's name."""

    name: Annotated[str, Meta(pattern=_NAME)]
    description: str
    rules: Annotated[tuple[Rule, ...], Meta(min_length=1)]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and the SHA-256 of the file that it is from."""

    recipe: Recipe
    sha256: str


#: What other recipes are compared with.
UNQUANTIZED: Final = LoadedRecipe(Recipe("none", "Nothing is quantized.", ()), "")


def load(name_or_path: str) -> LoadedRecipe:
    """A recipe of this package by name, or any by the path of its ``.toml`` file.

    Raises:
        UsageError: no recipe of that name.
        RecipeError: not TOML, an unknown key, or a value that its key does not allow.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = _packaged(name_or_path)
    try:
        data = documents.read_bytes(path)
    except DocumentError as error:
        raise _unparsed(str(name_or_path), error) from error
    return LoadedRecipe(parse(data, str(name_or_path)), hashlib.sha256(data).hexdigest())


def parse(data: bytes, where: str) -> Recipe:
    """The recipe in a TOML document; ``where`` is what errors call it."""
    try:
        return documents.toml(data, Recipe)
    except DocumentError as error:
        raise _unparsed(where, error) from error


def _unparsed(where: str, error: DocumentError) -> RecipeError:
    return RecipeError(
        f"The recipe {where} does not parse: {error}.",
        expected="TOML with name, description and [[rules]]; of each rule layers, format, "
        "reason, source and, if it is not for all blocks, depth.",
    )


def variant_name(recipe: Recipe, form: Form) -> str:
    """What a new variant is called: the lowest format, the recipe's name, and the form.

    ``nvfp4-max`` is the device variant of the recipe ``max``, ``nvfp4-max-emulation`` is what any
    CPU plays; a recipe without NVFP4 rules makes ``fp8-...``.
    """
    lowest = "nvfp4" if any(rule.format == "nvfp4" for rule in recipe.rules) else "fp8"
    return f"{lowest}-{recipe.name}{'-emulation' if form == 'emulation' else ''}"


def check_name(name: str) -> None:
    """Raise :class:`UsageError` unless a recipe can be called ``name``."""
    if not re.fullmatch(_NAME, name):
        raise UsageError(
            f"A recipe cannot be called {name!r}.",
            expected="1 to 32 lower-case letters, digits and '-'.",
        )


def names() -> list[str]:
    """The recipes of this package."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml"))


def resolve(recipe: Recipe, layers: Iterable[str]) -> dict[str, Rule]:
    """The rule of every layer that has one, in the order of ``layers``.

    Raises:
        RecipeError: a pattern that matches no layer (the recipe is for another model), or a
            layer that two rules name.
    """
    known = tuple(layers)
    found: dict[str, Rule] = {}
    for rule in recipe.rules:
        matched = _matches(recipe, rule, known)
        for layer in (layer for layer in known if layer in matched):
            if layer in found:
                raise RecipeError(
                    f"Two rules of the recipe {recipe.name!r} name {layer}: for "
                    f"{found[layer].format} ({found[layer].reason}) and for {rule.format} "
                    f"({rule.reason}).",
                    expected="at most one rule per layer.",
                )
            found[layer] = rule
    return {layer: found[layer] for layer in known if layer in found}


def alike(rules: Mapping[str, Rule], layers: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The graphs that ``layers`` are of, in groups whose layers have the same names and formats.

    Layers without one of the ``rules`` stay in bfloat16. Groups are in the order of the first
    graph in each.
    """
    formats: dict[str, dict[str, Format]] = {}
    for layer in layers:
        graph, _, node = layer.partition("/")
        rule = rules.get(layer)
        formats.setdefault(graph, {})[node] = rule.format if rule else "unquantized"
    groups: dict[tuple[tuple[str, Format], ...], list[str]] = {}
    for graph, each in formats.items():
        groups.setdefault(tuple(each.items()), []).append(graph)
    return tuple(tuple(graphs) for graphs in groups.values())


def _matches(recipe: Recipe, rule: Rule, layers: tuple[str, ...]) -> set[str]:
    count = _num_blocks(layers)
    matched: set[str] = set()
    for pattern in rule.layers:
        named = [
            layer
            for layer in layers
            if fnmatch.fnmatchcase(layer, pattern) and _within(layer, rule.depth, count)
        ]
        if not named:
            where = f" between the depths {rule.depth[0]} and {rule.depth[1]}" if rule.depth else ""
            raise RecipeError(
                f"The pattern {pattern!r} of the recipe {recipe.name!r} matches no layer{where}.",
                expected=f"a pattern for some of this model's layers: {_examples(layers)}.",
                remedy="use a recipe for this model.",
            )
        matched.update(named)
    return matched


def _within(layer: str, depth: tuple[float, float] | None, count: int) -> bool:
    if depth is None:
        return True
    block = _block(layer)
    # In whole blocks: 0.3 of 20 is 6 exactly, which 6 / 20 >= 0.3 does not promise.
    first, end = (round(share * count) for share in depth)
    return block is not None and first <= block < end


def _num_blocks(layers: Iterable[str]) -> int:
    return len({block for layer in layers if (block := _block(layer)) is not None})


def _block(layer: str) -> int | None:
    """Which block a layer is of."""
    return graph_names.block_index(layer.partition("/")[0])


def _examples(layers: tuple[str, ...]) -> str:
    kinds = dict.fromkeys(
        layer if _block(layer) is None else f"block_*/{layer.partition('/')[2]}" for layer in layers
    )
    shown = list(kinds)[:24]
    return ", ".join(shown) + (", ..." if len(kinds) > len(shown) else "")


def summary(rules: Mapping[str, Rule]) -> dict[str, int]:
    """How many layers each format has."""
    formats = [rule.format for rule in rules.values()]
    return {name: formats.count(name) for name in dict.fromkeys(formats)}


def _packaged(name: str) -> Path:
    if name not in names():
        raise UsageError(
            f"There is no recipe {name!r}.",
            expected=f"one of {', '.join(names())}, or the path of a .toml file.",
        )
    return _RECIPES / f"{name}.toml"
