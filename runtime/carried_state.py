"""What a block-causal model carries from chunk to chunk; zeros for a bidirectional one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final

import numpy as np

from sana_rt.runtime.backends.base import Copy, Entry
from sana_rt.runtime.backends.buffers import Buffer, HostArray, Memory
from sana_rt.runtime.memory import Region, carried, region, stacked

NAMES: Final = ("state_s", "state_k", "state_z")


class CarriedState:
    """The running sums S and ksum and the last frame of z, of every block.

    Blocks write into one scratch; a pass that shall count commits it, block by block. So the
    state is read-only while a chunk is denoised. Without commits, as in a bidirectional model,
    all blocks share one state of zeros.

    Each block's is a tensor of its own, since TensorRT asks for aligned addresses.
    """

    @staticmethod
    def regions(block: Entry, blocks: int) -> tuple[Region, ...]:
        """State of ``blocks`` blocks (1 if none commits) and scratch."""
        kept = (
            carried(region("state", block, name, _of(name, index)))
            for name in NAMES
            for index in range(blocks)
        )
        scratch = (region("state", block, f"{name}_out") for name in NAMES)
        return (*kept, *scratch)

    @staticmethod
    def snapshot(block: Entry, blocks: int) -> tuple[Region, ...]:
        """What :meth:`download` returns: the state of all blocks as one tensor."""
        return tuple(stacked(region("state", block, name), blocks) for name in NAMES)

    def __init__(self, memory: Memory, buffers: Mapping[str, Buffer]) -> None:
        self._memory, self._buffers = memory, buffers  # which come and go with their phases

    @property
    def scratch(self) -> dict[str, Buffer]:
        """Where every block writes its next state."""
        return {f"{name}_out": self._buffers[f"{name}_out"] for name in NAMES}

    def of(self, block: int) -> dict[str, Buffer]:
        """The state inputs of a block."""
        shared = {name: self._buffers[_of(name, 0)] for name in NAMES}
        return {name: self._buffers.get(_of(name, block), shared[name]) for name in NAMES}

    def commit(self, block: int) -> tuple[Copy, ...]:
        """The copies that make what the block has just written its state."""
        return tuple(
            Copy(self._memory, buffer, self.scratch[f"{name}_out"])
            for name, buffer in self.of(block).items()
        )

    def download(self) -> dict[str, HostArray]:
        """A host copy of all blocks' state; a bfloat16 z becomes float32."""
        return {
            name: np.stack([self._memory.download(buffer) for buffer in self._blocks(name)])
            for name in NAMES
        }

    def upload(self, arrays: Mapping[str, HostArray]) -> None:
        """Take a host copy as the state; exact for what :meth:`download` returned."""
        for name in NAMES:
            for buffer, array in zip(self._blocks(name), arrays[name], strict=True):
                self._memory.upload(buffer, array)

    def reset(self) -> None:
        """Go back to zeros, before the first chunk of a clip."""
        for name in NAMES:
            for buffer in self._blocks(name):
                self._memory.clear(buffer)

    def _blocks(self, name: str) -> list[Buffer]:
        """The tensors of all blocks, in order."""
        names = itertools.takewhile(
            self._buffers.__contains__, (_of(name, index) for index in itertools.count())
        )
        return [self._buffers[each] for each in names]


def _of(name: str, block: int) -> str:
    return f"{name}.{block}"
