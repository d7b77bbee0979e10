"""Recipes: what they parse to, which layers they take, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from sana_rt.errors import RecipeError, StorageError, UsageError
from sana_rt.quantize import recipe as recipes
from sana_rt.quantize.recipe import Recipe, Rule

BLOCK_LAYERS = (
    "attn1.to_k", "attn1.to_v", "attn1.to_q", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0",
    "ff.conv_inverted", "ff.conv_point", "ff.conv_temp", "ff.conv_temp.1",
)  # fmt: skip


def layers(blocks: int) -> list[str]:
    prompt = [
        f"prompt/transformer_blocks.{block}.attn2.to_{name}"
        for block in range(blocks)
        for name in "kv"
    ]
    inner = [f"block_{block:02d}/{layer}" for block in range(blocks) for layer in BLOCK_LAYERS]
    return [*prompt, "patch_embed/patch_embedding", *inner, "final_layer/proj_out"]


def rule(*patterns: str, **fields: object) -> Rule:
    return Rule(patterns, fields.pop("format", "nvfp4"), "r", "s", **fields)  # type: ignore[arg-type]


def test_the_packaged_recipes_fit_the_model() -> None:
    assert recipes.names() == ["max", "mixed", "paper"]
    for name in recipes.names():
        loaded = recipes.load(name)
        assert loaded.recipe.name == name
        assert recipes.resolve(loaded.recipe, layers(20))
        assert recipes.resolve(loaded.recipe, layers(2)), "a small model has both depths, too"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("paper", {"unquantized": 80, "nvfp4": 160}),
        ("max", {"nvfp4": 200}),
        # FP4: to_q, to_k, cross out, both temporal ones in 20 blocks, two of the FFN in 14.
        ("mixed", {"unquantized": 40, "fp8": 12 + 60, "nvfp4": 100 + 28}),
    ],
)
def test_how_many_layers_a_recipe_takes(name: str, counts: dict[str, int]) -> None:
    rules = recipes.resolve(recipes.load(name).recipe, layers(20))
    assert recipes.summary(rules) == counts


def test_mixed_turns_to_fp4_at_block_six_of_twenty() -> None:
    rules = recipes.resolve(recipes.load("mixed").recipe, layers(20))
    formats = [rules[f"block_{block:02d}/ff.conv_point"].format for block in range(20)]
    assert formats == ["fp8"] * 6 + ["nvfp4"] * 14


def test_layers_keep_their_order_and_the_rest_has_no_rule() -> None:
    taken = recipes.resolve(
        Recipe("r", "", (rule("*attn2.to_q"), rule("block_00/ff.*"))), layers(2)
    )
    assert list(taken) == [
        "block_00/attn2.to_q", "block_00/ff.conv_inverted", "block_00/ff.conv_point",
        "block_00/ff.conv_temp", "block_00/ff.conv_temp.1", "block_01/attn2.to_q",
    ]  # fmt: skip


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"'block_\*/attn1\.to_z' .* matches no layer") as caught:
        recipes.resolve(Recipe("r", "", (rule("block_*/ff.*", "block_*/attn1.to_z"),)), layers(2))
    assert "block_*/attn1.to_q" in caught.value.expected


def test_a_depth_without_a_block_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"between the depths 0\.3 and 0\.4"):
        recipes.resolve(Recipe("r", "", (rule("block_*/ff.*", depth=(0.3, 0.4)),)), layers(2))


def test_a_layer_of_two_rules_is_an_error() -> None:
    both = Recipe("r", "", (rule("*to_q"), rule("block_00/*", format="fp8")))
    with pytest.raises(RecipeError, match=r"Two rules .* block_00/attn1\.to_q"):
        recipes.resolve(both, layers(2))


GOOD = """\
name = "own"
description = ""
[[rules]]
layers = ["*"]
format = "unquantized"
reason = "r"
source = "s"
depth = [0.0, 0.5]
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('name = "own"', 'name = "Own recipe"'),
        ('name = "own"', "name = "),
        ('name = "own"', ""),
        ('description = ""', 'description = ""\ncomment = ""'),
        ('layers = ["*"]', "layers = []"),
        ('layers = ["*"]', 'layer = ["*"]'),
        ('layers = ["*"]', 'layers = "*"'),
        ('format = "unquantized"', 'format = "int4"'),
        ('reason = "r"', ""),
        ('source = "s"', ""),
        ("0.5", "1.5"),
    ],
)
def test_what_is_no_recipe_is_refused(before: str, after: str) -> None:
    assert recipes.parse(GOOD.encode(), "own").name == "own"
    with pytest.raises(RecipeError, match="The recipe own does not parse"):
        recipes.parse(GOOD.replace(before, after).encode(), "own")


def test_names_and_paths(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes((Path(recipes.__file__).parent / "recipes" / "max.toml").read_bytes())
    assert recipes.load(str(path)) == recipes.load("max")
    with pytest.raises(UsageError, match="no recipe 'best'"):
        recipes.load("best")
    with pytest.raises(StorageError):
        recipes.load(str(tmp_path / "missing.toml"))


def test_a_part_of_a_model_is_not_the_model() -> None:
    block = [layer for layer in layers(1) if layer.startswith("block_00/")]
    with pytest.raises(RecipeError, match="matches no layer"):
        recipes.resolve(recipes.load("paper").recipe, block)  # no prompt graph


def test_blocks_are_alike_where_their_layers_have_the_same_formats() -> None:
    blocks = [f"block_{index:02d}" for index in range(20)]
    inner = [layer for layer in layers(20) if layer.startswith("block_")]
    for name in ("paper", "max"):
        found = recipes.resolve(recipes.load(name).recipe, layers(20))
        assert recipes.alike(found, inner) == (tuple(blocks),)
    mixed = recipes.resolve(recipes.load("mixed").recipe, layers(20))
    assert recipes.alike(mixed, inner) == (tuple(blocks[:6]), tuple(blocks[6:]))
    # Named layer by layer, as a proposal names them; the groups are not neighbours.
    rules = (
        rule("block_0[02]/attn1.to_q", "block_02/attn1.to_k", "block_00/attn1.to_k"),
        rule("block_01/attn1.to_q", format="fp8"),
        rule("block_03/*", format="unquantized"),
    )
    own = Recipe("own", "", rules)
    names = [*inner[:50], "final_layer/proj_out"]
    assert recipes.alike(recipes.resolve(own, layers(5)), names) == (
        ("block_00", "block_02"),
        ("block_01",),
        ("block_03", "block_04"),
        ("final_layer",),
    )
