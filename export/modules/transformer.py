"""The diffusion transformer as the parts that become graphs, and as one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sana_rt import graph_names
from sana_rt.export.modules.block import Block, BlockState, Depthwise
from sana_rt.export.modules.embed import FinalLayer, PatchEmbed, TimestepEmbed
from sana_rt.export.modules.prompt import Prompt
from sana_rt.export.modules.rope import RotaryTables
from sana_rt.graph_names import FINAL_LAYER, PATCH_EMBED, PROMPT, ROPE, TIMESTEP
from sana_rt.model_spec import TransformerSpec


@dataclass(frozen=True)
class Part:
    """The module behind one graph, and where a checkpoint keeps its tensors.

    A tensor's key is ``prefix`` and the module's own key. Under ``torch.device("meta")``,
    ``build`` allocates nothing, and ``load_state_dict(…, assign=True)`` then fills the module.
    """

    build: Callable[[], nn.Module]
    prefix: str = ""


def parts(spec: TransformerSpec, depthwise: Depthwise = "conv") -> dict[str, Part]:
    """The parts of the transformer by graph name, in the order in which they run."""
    blocks = {
        graph_names.block(index): Part(
            partial(Block, spec, depthwise), f"transformer_blocks.{index}."
        )
        for index in range(spec.num_layers)
    }
    return {
        PROMPT: Part(partial(Prompt, spec)),
        ROPE: Part(partial(RotaryTables, spec)),
        TIMESTEP: Part(partial(TimestepEmbed, spec)),
        PATCH_EMBED: Part(partial(PatchEmbed, spec)),
        **blocks,
        FINAL_LAYER: Part(partial(FinalLayer, spec)),
    }


class Transformer(nn.Module):
    """All parts as one network: for tests and training.

    Its state dict has the checkpoint's names; ``named_parameters`` has those of the parts.
    """

    def __init__(self, spec: TransformerSpec, depthwise: Depthwise = "conv") -> None:
        super().__init__()
        self.spec = spec
        members = parts(spec, depthwise)
        self.parts = nn.ModuleDict({name: part.build() for name, part in members.items()})
        self._names = {  # checkpoint key to own key
            part.prefix + key: f"parts.{name}.{key}"
            for name, part in members.items()
            for key in self.parts[name].state_dict()
        }
        # torch does not annotate the two
        self.register_state_dict_post_hook(_to_checkpoint_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_checkpoint_names)  # type: ignore[no-untyped-call]

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        hidden_states: Tensor,
        attention_mask: Tensor,
        state: Sequence[BlockState] | None = None,
        frame_offset: int = 0,
    ) -> tuple[Tensor, list[BlockState]]:
        """Predict the flow velocity of a clip, or of a chunk that follows ``state``.

        Args:
            latents: f32 [B, C, frames, height, width].
            timestep: f32 [B, frames], 0..1000.
            hidden_states: Text encoder output [B, S, Ct].
            attention_mask: i64 [B, S]; 1 = keep.
            state: One a block; None before the first chunk.
            frame_offset: Absolute index of the first latent frame.

        Returns:
            The velocity, like ``latents``, and the state after these frames.
        """
        run = self.parts
        tokens = run[PATCH_EMBED](latents)
        modulation, embedding = run[TIMESTEP](timestep)
        text_k, text_v, text_bias = run[PROMPT](hidden_states, attention_mask)
        rope = run[ROPE](*self._positions(tokens, frame_offset))
        after = []
        for index in range(self.spec.num_layers):
            before = state[index] if state else BlockState.zeros(self.spec, tokens)
            tokens, *new = run[graph_names.block(index)](
                tokens, modulation, text_k[index], text_v[index], text_bias, *rope, *before
            )
            after.append(BlockState(*new))
        return run[FINAL_LAYER](tokens, embedding), after

    def _positions(self, tokens: Tensor, frame_offset: int) -> list[Tensor]:
        frames, rows, columns = tokens.shape[1:4]
        starts = (frame_offset, 0, 0)
        return [
            torch.arange(start, start + count, device=tokens.device)
            for start, count in zip(starts, (frames, rows, columns), strict=True)
        ]


def _to_checkpoint_names(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: Any
) -> None:
    assert isinstance(module, Transformer)
    for checkpoint_key, key in module._names.items():
        state_dict[prefix + checkpoint_key] = state_dict.pop(prefix + key)


def _from_checkpoint_names(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_rest: Any
) -> None:
    assert isinstance(module, Transformer)
    for checkpoint_key, key in module._names.items():
        if prefix + checkpoint_key in state_dict:
            state_dict[prefix + key] = state_dict.pop(prefix + checkpoint_key)
