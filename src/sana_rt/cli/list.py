"""``sana-rt list``: the names that other commands take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from sana_rt.bundle import Bundle
from sana_rt.cli import output
from sana_rt.cli.command import Command
from sana_rt.engines import cards, workloads
from sana_rt.errors import UsageError
from sana_rt.model_spec import PRESETS
from sana_rt.quantize import recipe as recipes

Entry = dict[str, Any]  # a name, and what tells it from the others


def _recipes() -> list[Entry]:
    loaded = [(name, recipes.load(name).recipe) for name in recipes.names()]
    return [
        {
            "recipe": name,
            "formats": sorted({rule.format for rule in recipe.rules} - {"unquantized"}),
            "description": recipe.description,
        }
        for name, recipe in loaded
    ]


def _models() -> list[Entry]:
    return [
        {
            "model": name,
            "blocks": model.transformer.num_layers,
            "autoencoder": model.vae.kind,
            "kind": "block-causal" if model.transformer.causal else "bidirectional",
            "frames": model.sampling.num_frames,
            "size": f"{model.sampling.width}x{model.sampling.height}",
        }
        for name, model in PRESETS.items()
    ]


def _cards() -> list[Entry]:
    return [
        {
            "card": name,
            "name": card.name,
            "compute_capability": card.compute_capability,
            "target": target.name if target else None,
            "memory": output.size(card.memory_bytes),
            "dtypes": target.dtypes if target else (),
        }
        for name, card in cards.CARDS.items()
        for target in [cards.target_of(card.compute_capability)]
    ]


def _workloads() -> list[Entry]:
    return [
        {
            "workload": name,
            "frames": str(loaded.num_frames),
            "size": f"{loaded.width}x{loaded.height}",
            "batch": str(loaded.batch),
            "description": loaded.description,
        }
        for name in workloads.names()
        for loaded in [workloads.load(name)]
    ]


def _variants(root: Path) -> list[Entry]:
    return [
        {
            "variant": name,
            "dtype": variant.dtype,
            "loras": [f"{lora} ({lora.sha256[:12]})" for lora in variant.source.loras],
            "quantization": None if variant.quantization is None else str(variant.quantization),
            "plans_for": list(variant.plans),
        }
        for name, variant in Bundle.read(root).manifest.variants.items()
    ]


_LISTS: Final[dict[str, Callable[[], list[Entry]]]] = {
    "recipes": _recipes,
    "models": _models,
    "cards": _cards,
    "workloads": _workloads,
}
_VARIANTS: Final = "variants"


@click.command(cls=Command, epilog="Example: sana-rt list recipes")
@click.argument("what", type=click.Choice([*_LISTS, _VARIANTS]))
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(what: str, bundle: Path | None, *, as_json: bool) -> None:
    """List the names that options take.

    recipes are for quantize and bound (--recipe); models for export (--preset) and bound
    (--model); cards for bound and inspect (--device), their targets for build (--target);
    workloads for build (--workload). `sana-rt list variants BUNDLE` lists what BUNDLE has for
    --variant, with the LoRAs that were merged into each.
    """
    if (what == _VARIANTS) != (bundle is not None):
        raise UsageError(
            f"{what} are {'of a bundle' if what == _VARIANTS else 'of no bundle'}.",
            expected=f"`sana-rt list {what}{' BUNDLE' if what == _VARIANTS else ''}`.",
        )
    entries = _LISTS[what]() if bundle is None else _variants(bundle)
    if as_json:
        output.json(entries)
        return
    columns = [name.replace("_", " ") for name in entries[0]]
    rows = [[_text(value) for value in each.values()] for each in entries]
    output.table(what.capitalize(), columns, rows)


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)
