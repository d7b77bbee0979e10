"""One chunk of latents, from noise to the estimate of x0."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from sana_rt import graph_names
from sana_rt.graph_names import FINAL_LAYER, PATCH_EMBED, ROPE, SOLVER, TIMESTEP
from sana_rt.runtime.backends.base import Binding, Clear, Copy
from sana_rt.runtime.backends.buffers import Buffer, Memory
from sana_rt.runtime.carried_state import CarriedState
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.memory import Region, carried, filled, region, single
from sana_rt.runtime.solver import Step, coefficients, timesteps

Latents = NDArray[np.float32]

_INDICES = ("frame_index", "row_index", "column_index")
_ROPE = ("rope_t", "rope_h", "rope_w")


class Denoiser:
    """The transformer and the solver over the first ``frames`` latent frames of the buffers.

    Every graph is bound once, to addresses that do not change. A step fills what is its own
    (timesteps, coefficients, noise) and runs a program that is the same at every step. With
    guidance the batch is (negative, positive); the latents are the same in both halves.
    """

    @staticmethod
    def regions(graphs: Graphs, blocks_with_state: int) -> tuple[Region, ...]:
        """The buffers it works on, but for the text's."""
        of = graphs.signature
        block = of(graph_names.block(0))
        return (
            *(filled(region("tokens", of(ROPE), name)) for name in _INDICES),
            *(carried(region("tokens", of(ROPE), name)) for name in _ROPE),
            filled(region("tokens", of(TIMESTEP), "timestep")),
            *(region("tokens", of(TIMESTEP), name) for name in ("modulation", "embedding")),
            *(region("tokens", block, name) for name in ("tokens", "tokens_out")),
            region("tokens", of(FINAL_LAYER), "velocity"),
            filled(carried(region("latents", of(PATCH_EMBED), "latents"))),
            *(filled(single(region("latents", of(SOLVER), name))) for name in _FILLED),
            *(single(region("latents", of(SOLVER), name)) for name in _WRITTEN),
            *CarriedState.regions(block, blocks_with_state),
        )

    def __init__(self, graphs: Graphs, buffers: Mapping[str, Buffer], state: CarriedState) -> None:
        self._graphs, self._memory = graphs, graphs.memory
        self._buffers, self._state = buffers, state
        names = graph_names.blocks(buffers["text_k"].shape[0])
        blocks = [self._bind_block(index, name) for index, name in enumerate(names)]
        before = self._bind_before()
        self._start = graphs.program(
            self._bind_rope(), Clear(self._memory, buffers["previous_sample"])
        )
        self._step = graphs.program(
            *before, *blocks, self._bind_final(len(names)), self._bind_solver(), *self._moves()
        )
        commits = ((block, *state.commit(index)) for index, block in enumerate(blocks))
        self._commit = graphs.program(*before, *chain.from_iterable(commits))

    def start(self, frames: range, latents: Latents) -> None:
        """Begin a chunk at the absolute latent ``frames`` with latents [1, C, T, h, w]."""
        for name, first in zip(_INDICES, (frames.start, 0, 0), strict=True):
            buffer = self._buffers[name]
            self._memory.fill(buffer, np.arange(first, first + buffer.shape[0], dtype=np.int64))
        for half in _halves(self._buffers["latents"]):
            self._memory.fill(half, latents)
        self._graphs.run(self._start)

    def step(
        self,
        step: Step,
        guidance_scale: float,
        noise: Latents | None = None,
        *,
        condition_frames: int = 0,
    ) -> None:
        """One pass through the transformer and one move of the latents."""
        buffers, memory, frames = self._buffers, self._memory, self._frames
        self._fill_timesteps(timesteps(step, frames, condition_frames=condition_frames))
        rows = coefficients(step, guidance_scale, frames, condition_frames=condition_frames)
        memory.fill(buffers["coefficients"], rows)
        if noise is not None:
            memory.fill(buffers["noise"], noise)
        self._graphs.run(self._step)

    def commit(self) -> None:
        """One pass over the finished latents at t = 0, after which the state includes them."""
        self._fill_timesteps(np.zeros(self._frames, np.float32))
        self._graphs.run(self._commit)

    def latents(self) -> Latents:
        """A host copy of the latents [1, C, T, h, w]."""
        return latents(self._memory, self._buffers)

    @property
    def _frames(self) -> int:
        return self._buffers["latents"].shape[2]

    def _fill_timesteps(self, timesteps_of_frames: NDArray[np.float32]) -> None:
        buffer = self._buffers["timestep"]
        self._memory.fill(buffer, np.tile(timesteps_of_frames, (buffer.shape[0], 1)))

    def _tokens(self, index: int) -> Buffer:
        """Where block ``index`` reads its tokens; the block before it writes them there."""
        return self._buffers[("tokens", "tokens_out")[index % 2]]

    def _bind_rope(self) -> Binding:
        indices = _pick(self._buffers, *_INDICES)
        return self._graphs.bind(ROPE, indices, _pick(self._buffers, *_ROPE))

    def _bind_before(self) -> tuple[Binding, ...]:
        """What runs in front of the blocks."""
        bind, buffers = self._graphs.bind, self._buffers
        modulation = _pick(buffers, "modulation", "embedding")
        return (
            bind(TIMESTEP, _pick(buffers, "timestep"), modulation),
            bind(PATCH_EMBED, _pick(buffers, "latents"), _pick(buffers, "tokens")),
        )

    def _bind_block(self, index: int, name: str) -> Binding:
        buffers = self._buffers
        text = {name: buffers[name].row(index) for name in ("text_k", "text_v")}
        return self._graphs.bind(
            name,
            {
                "tokens": self._tokens(index),
                **_pick(buffers, "modulation", "text_bias", *_ROPE),
                **text,
                **self._state.of(index),
            },
            {"tokens_out": self._tokens(index + 1), **self._state.scratch},
        )

    def _bind_final(self, blocks: int) -> Binding:
        inputs = {"tokens": self._tokens(blocks), **_pick(self._buffers, "embedding")}
        return self._graphs.bind(FINAL_LAYER, inputs, _pick(self._buffers, "velocity"))

    def _bind_solver(self) -> Binding:
        buffers = self._buffers
        velocities = _halves(buffers["velocity"])
        inputs = {
            "latents": _halves(buffers["latents"])[0],
            "velocity_negative": velocities[0],
            "velocity_positive": velocities[-1],
            **_pick(buffers, "previous_sample", "noise", "coefficients"),
        }
        return self._graphs.bind(SOLVER, inputs, _pick(buffers, "latents_out", "sample"))

    def _moves(self) -> tuple[Copy, ...]:
        """What the solver wrote becomes what the next step reads."""
        memory, buffers = self._memory, self._buffers
        halves = _halves(buffers["latents"])
        return (
            Copy(memory, buffers["previous_sample"], buffers["sample"]),
            *(Copy(memory, half, buffers["latents_out"]) for half in halves),
        )


_FILLED = ("noise", "coefficients")
_WRITTEN = ("previous_sample", "latents_out", "sample")


def latents(memory: Memory, buffers: Mapping[str, Buffer]) -> Latents:
    """A host copy of the latents [1, C, T, h, w] in buffers of the chunk's length."""
    return memory.download(_halves(buffers["latents"])[0])


def _pick(buffers: Mapping[str, Buffer], *names: str) -> dict[str, Buffer]:
    return {name: buffers[name] for name in names}


def _halves(buffer: Buffer) -> tuple[Buffer, ...]:
    """The samples of a batch, each a batch of one."""
    return tuple(buffer[index : index + 1] for index in range(buffer.shape[0]))
