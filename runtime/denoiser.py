"""One chunk of latents, from noise to the estimate of x0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from sana_rt import graph_names
from sana_rt.graph_names import FINAL_LAYER, PATCH_EMBED, ROPE, SOLVER, TIMESTEP
from sana_rt.runtime.backends.base import Binding, Buffer
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.memory import Region, region, single
from sana_rt.runtime.solver import Step, coefficients, timesteps
from sana_rt.runtime.state import State

Latents = NDArray[np.float32]

_ROPE = ("rope_t", "rope_h", "rope_w")


class Denoiser:
    """The transformer and the solver over the first ``frames`` latent frames of the buffers.

    Every graph is bound once, to addresses that do not change: a step is a fixed sequence of
    runs and copies. With guidance the batch is (negative, positive); the latents are the same
    in both halves.
    """

    @staticmethod
    def regions(graphs: Graphs, blocks_with_state: int) -> tuple[Region, ...]:
        """The buffers it works on, but for the text's."""
        of = graphs.signature
        rope = (*(f"{axis}_index" for axis in ("frame", "row", "column")), *_ROPE)
        return (
            *(region("transformer", of(ROPE), name) for name in rope),
            *(region("transformer", of(TIMESTEP), name) for name in _TIMESTEP),
            *(
                region("transformer", of(graph_names.block(0)), name)
                for name in ("tokens", "tokens_out")
            ),
            region("transformer", of(FINAL_LAYER), "velocity"),
            region("latents", of(PATCH_EMBED), "latents"),
            *(single(region("latents", of(SOLVER), name)) for name in _SOLVER),
            *State.regions(of(graph_names.block(0)), blocks_with_state),
        )

    def __init__(self, graphs: Graphs, buffers: Mapping[str, Buffer], state: State) -> None:
        self._graphs, self._memory = graphs, graphs.memory
        self._buffers, self._state = buffers, state
        self._rope = graphs.bind(
            ROPE,
            _pick(buffers, "frame_index", "row_index", "column_index"),
            _pick(buffers, *_ROPE),
        )
        self._before = (
            graphs.bind(
                TIMESTEP,
                _pick(buffers, "timestep"),
                _pick(buffers, "modulation", "embedding"),
            ),
            graphs.bind(PATCH_EMBED, _pick(buffers, "latents"), _pick(buffers, "tokens")),
        )
        names = graph_names.blocks(buffers["text_k"].shape[0])
        self._blocks = [self._bind_block(index, name) for index, name in enumerate(names)]
        self._after = graphs.bind(
            FINAL_LAYER,
            {"tokens": self._tokens(len(names)), "embedding": buffers["embedding"]},
            _pick(buffers, "velocity"),
        )
        self._solver = self._bind_solver()

    def start(self, frames: range, latents: Latents) -> None:
        """Begin a chunk at the absolute latent ``frames`` with latents [1, C, T, h, w]."""
        for name, first in (("frame_index", frames.start), ("row_index", 0), ("column_index", 0)):
            buffer = self._buffers[name]
            self._memory.upload(buffer, np.arange(first, first + buffer.shape[0], dtype=np.int64))
        self._graphs.run(self._rope)
        for half in _halves(self._buffers["latents"]):
            self._memory.upload(half, latents)
        self._memory.clear(self._buffers["previous_sample"])

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
        self._forward(timesteps(step, frames, condition_frames=condition_frames))
        rows = coefficients(step, guidance_scale, frames, condition_frames=condition_frames)
        memory.upload(buffers["coefficients"], rows)
        if noise is not None:
            memory.upload(buffers["noise"], noise)
        self._graphs.run(self._solver)
        memory.copy(buffers["previous_sample"], buffers["sample"])
        for half in _halves(buffers["latents"]):
            memory.copy(half, buffers["latents_out"])

    def commit(self) -> None:
        """One pass over the finished latents at t = 0, after which the state includes them."""
        for block in self._forward_blocks(np.zeros(self._frames, np.float32)):
            self._state.commit(block)

    def latents(self) -> Latents:
        """A host copy of the latents [1, C, T, h, w]."""
        return self._memory.download(_halves(self._buffers["latents"])[0])

    @property
    def _frames(self) -> int:
        return self._buffers["latents"].shape[2]

    def _forward(self, timesteps_of_frames: NDArray[np.float32]) -> None:
        for _ in self._forward_blocks(timesteps_of_frames):
            pass
        self._graphs.run(self._after)

    def _forward_blocks(self, timesteps_of_frames: NDArray[np.float32]) -> Iterator[int]:
        """Run everything up to the last block; yields after each block."""
        buffer = self._buffers["timestep"]
        self._memory.upload(buffer, np.tile(timesteps_of_frames, (buffer.shape[0], 1)))
        for binding in self._before:
            self._graphs.run(binding)
        for index, block in enumerate(self._blocks):
            self._graphs.run(block)
            yield index

    def _tokens(self, index: int) -> Buffer:
        """Where block ``index`` reads its tokens; the block before it writes them there."""
        return self._buffers[("tokens", "tokens_out")[index % 2]]

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


_TIMESTEP = ("timestep", "modulation", "embedding")
_SOLVER = ("previous_sample", "noise", "coefficients", "latents_out", "sample")


def _pick(buffers: Mapping[str, Buffer], *names: str) -> dict[str, Buffer]:
    return {name: buffers[name] for name in names}


def _halves(buffer: Buffer) -> tuple[Buffer, ...]:
    """The samples of a batch, each a batch of one."""
    return tuple(buffer[index : index + 1] for index in range(buffer.shape[0]))
