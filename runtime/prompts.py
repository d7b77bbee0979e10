"""Prompts to the keys and values of every block's cross attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sana_rt.graph_names import PROMPT, TEXT_ENCODER
from sana_rt.runtime.backends.base import Binding
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.inputs import Embeds, PromptEmbeds
from sana_rt.runtime.memory import Region, carried, region, single
from sana_rt.runtime.request import Request
from sana_rt.runtime.residence import Buffers
from sana_rt.runtime.text import PromptTokenizer, TokenizedPrompt, prompt_text, select

_TOKENS: Final = (("input_ids", "input_ids"), ("attention_mask", "input_mask"))


def encoder_regions(graphs: Graphs) -> tuple[Region, ...]:
    """Tokens of one prompt, and the text encoder's hidden states."""
    encoder = graphs.signature(TEXT_ENCODER)
    parts = (*_TOKENS, ("hidden_states", "encoded"))
    return tuple(single(region("text", encoder, tensor, name)) for tensor, name in parts)


def projection_regions(graphs: Graphs) -> tuple[Region, ...]:
    """What the transformer sees of the prompts, and its keys and values for every block."""
    projection = graphs.signature(PROMPT)
    names = ("hidden_states", "attention_mask", "text_k", "text_v", "text_bias")
    return tuple(carried(region("text K/V", projection, name)) for name in names)


def encode(
    graphs: Graphs,
    buffers: Buffers,
    tokenizer: PromptTokenizer,
    request: Request,
    prompts: Sequence[str],
) -> dict[str, Embeds]:
    """What the transformer sees of the negative prompt, if guided, and of each of ``prompts``.

    Warns with :class:`sana_rt.runtime.text.PromptTruncatedWarning` if a prompt is too long.
    """
    negative: Embeds = ()
    if request.guided:
        text = prompt_text(request.negative_prompt, lowercase=request.lowercase)
        negative = (_encode(graphs, buffers, tokenizer.encode(text, instruction=False)),)
    encoded = {}
    for prompt in prompts:
        text = prompt_text(prompt, motion_score=request.motion_score, lowercase=request.lowercase)
        positive = _encode(graphs, buffers, tokenizer.encode(text, instruction=True))
        encoded[prompt] = (*negative, positive)
    return encoded


def project(graphs: Graphs, buffers: Buffers, embeds: Embeds) -> None:
    """Fill ``text_k``, ``text_v`` and ``text_bias``, until the prompt changes."""
    memory = graphs.memory
    hidden_states = np.concatenate([one.hidden_states for one in embeds])
    memory.upload(buffers["hidden_states"], hidden_states)
    memory.upload(buffers["attention_mask"], np.concatenate([one.attention_mask for one in embeds]))
    names = ("hidden_states", "attention_mask"), ("text_k", "text_v", "text_bias")
    inputs, outputs = ({name: buffers[name] for name in side} for side in names)
    graphs.run(graphs.bind(PROMPT, inputs, outputs))


def _encode(graphs: Graphs, buffers: Buffers, prompt: TokenizedPrompt) -> PromptEmbeds:
    sized = buffers.sized(length=prompt.length)
    graphs.memory.upload(sized["input_ids"], prompt.input_ids)
    graphs.memory.upload(sized["input_mask"], prompt.attention_mask)
    binding: Binding = graphs.bind(
        TEXT_ENCODER,
        {tensor: sized[name] for tensor, name in _TOKENS},
        {"hidden_states": sized["encoded"]},
    )
    graphs.run(binding)
    return PromptEmbeds(*select(graphs.memory.download(sized["encoded"]), prompt))
