"""A file of recorded passes: what the runtime writes while it plays, and calibration reads.

It is an archive of arrays as numpy writes it (``.npz``), one member after another:

* ``pass_00000/…`` has the inputs of the first block, but for the text's, and ``embedding``,
  which the final layer is given beside the tokens;
* ``prompt_00000/block_00/text_k`` and ``…/text_v`` are shared by all passes of a prompt;
* ``header``, the last one, is a :class:`Header` as JSON in bytes.
"""

from __future__ import annotations

from typing import Final, Literal

from sana_rt import graph_names
from sana_rt.model_spec import Count, Frozen, Natural

HEADER: Final = "header"
EMBEDDING: Final = "embedding"
TEXT: Final = ("text_k", "text_v")


class RecordedPass(Frozen, frozen=True):
    """One pass of the transformer at ``timestep`` (0..1000), for a prompt by its number."""

    timestep: float
    prompt: Natural


class Header(Frozen, frozen=True):
    """What was played; ``checkpoint`` is the manifest's source, ``prompts`` of a file (SHA-256).

    ``inputs`` are the names of those of the first block that every pass has.
    """

    format: Literal["sana-rt-passes"]
    format_version: Literal[1]
    checkpoint: str
    variant: str
    prompts: str
    blocks: Count
    inputs: tuple[str, ...]
    passes: tuple[RecordedPass, ...]


def pass_member(number: int, tensor: str) -> str:
    """The name of a tensor of a pass."""
    return f"pass_{number:05d}/{tensor}"


def text_member(prompt: int, block: int, tensor: str) -> str:
    """The name of a block's keys or values of a prompt."""
    return f"prompt_{prompt:05d}/{graph_names.block(block)}/{tensor}"
