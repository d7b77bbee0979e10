"""The autoencoders that can be exported, by the kind that a specification names.

Another one is a module like :mod:`sana_rt.export.wan` and an entry of ``AUTOENCODERS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from sana_rt.decode_window import DecodeWindow
from sana_rt.errors import CheckpointFormatError
from sana_rt.export.config_keys import shown
from sana_rt.export.graph_definition import DType, GraphDefinition
from sana_rt.export.ltx2 import LTX2
from sana_rt.export.tensor_shapes import Shapes
from sana_rt.export.wan import Wan
from sana_rt.export.weights import read_json
from sana_rt.model_spec import DCAE_VAE, VAESpec


class Autoencoder(Protocol):
    """An architecture of the sizes in a specification."""

    def __init__(self, spec: Any) -> None:
        """``spec`` is that of its kind."""

    @staticmethod
    def class_name() -> str:
        """What diffusers calls it."""

    @staticmethod
    def read(path: Path, config: Mapping[str, Any]) -> VAESpec:
        """The specification that diffusers' ``config`` says, which is the file at ``path``."""

    def config(self) -> dict[str, Any]:
        """The specification as diffusers' configuration."""

    def tensor_shapes(self) -> Shapes:
        """The checkpoint's tensors, under diffusers' names."""

    def original_to_diffusers(self, name: str) -> str:
        """The diffusers name of a tensor of the original file."""

    def graphs(self, dtype: DType) -> tuple[GraphDefinition, ...]:
        """The decoder's graphs and the encoder for one image."""

    def window(self) -> DecodeWindow:
        """How the decoder is called."""


AUTOENCODERS: Final[Mapping[str, type[Autoencoder]]] = {"wan": Wan, "ltx2": LTX2}

#: Those that are known, but have no graphs, by the beginning of diffusers' name.
_WITHOUT_GRAPHS: Final[Mapping[str, VAESpec]] = {
    "AutoencoderDC": DCAE_VAE,  # diffusers has no class of its video form
}


def find(spec: VAESpec) -> Autoencoder | None:
    """The autoencoder that ``spec`` describes, or None for a kind that has no graphs."""
    known = AUTOENCODERS.get(spec.kind)
    return None if known is None else known(spec)


def read_spec(folder: Path) -> VAESpec:
    """The autoencoder's kind and, where it has graphs, its sizes, from ``config.json``."""
    path = folder / "config.json"
    config = read_json(path)
    name = config.get("_class_name")
    for known in AUTOENCODERS.values():
        if name == known.class_name():
            return known.read(path, config)
    for beginning, spec in _WITHOUT_GRAPHS.items():
        if str(name).startswith(beginning):
            return spec
    names = [*(known.class_name() for known in AUTOENCODERS.values()), *_WITHOUT_GRAPHS]
    raise CheckpointFormatError(
        f"{path} is the configuration of {shown(name)}.",
        expected=f"one of {', '.join(names)}.",
    )
