"""What a block-causal model carries from chunk to chunk; zeros for a bidirectional one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sana_rt.runtime.backends.base import Copy, Entry
from sana_rt.runtime.backends.buffers import Buffer, HostArray, Memory
from sana_rt.runtime.memory import Region, carried, region, stacked

NAMES: Final = ("state_s", "state_k", "state_z")


class CarriedState:
    """The running sums S and ksum and the last frame of z, of every block.

    Blocks write into one scratch; a pass that shall count commits it, block by block. So the
    state is read-only while a chunk is denoised. Without commits, as in a bidirectional model,
    all blocks share one state of zeros.
    """

    @staticmethod
    def regions(block: Entry, blocks: int) -> tuple[Region, ...]:
        """State of ``blocks`` blocks (1 if none commits) and scratch."""
        kept = (carried(stacked(region("state", block, name), blocks)) for name in NAMES)
        scratch = (region("state", block, f"{name}_out") for name in NAMES)
        return (*kept, *scratch)

    def __init__(self, memory: Memory, buffers: Mapping[str, Buffer]) -> None:
        self._memory, self._buffers = memory, buffers  # which come and go with their phases

    @property
    def scratch(self) -> dict[str, Buffer]:
        """Where every block writes its next state."""
        return {f"{name}_out": self._buffers[f"{name}_out"] for name in NAMES}

    @property
    def _carried(self) -> dict[str, Buffer]:
        return {name: self._buffers[name] for name in NAMES}

    def of(self, block: int) -> dict[str, Buffer]:
        """The state inputs of a block."""
        return {name: buffer.row(block % buffer.shape[0]) for name, buffer in self._carried.items()}

    def commit(self, block: int) -> tuple[Copy, ...]:
        """The copies that make what the block has just written its state."""
        return tuple(
            Copy(self._memory, buffer, self.scratch[f"{name}_out"])
            for name, buffer in self.of(block).items()
        )

    def download(self) -> dict[str, HostArray]:
        """A host copy of all blocks' state; a bfloat16 z becomes float32."""
        return {name: self._memory.download(buffer) for name, buffer in self._carried.items()}

    def upload(self, arrays: Mapping[str, HostArray]) -> None:
        """Take a host copy as the state; exact for what :meth:`download` returned."""
        for name, buffer in self._carried.items():
            self._memory.upload(buffer, arrays[name])

    def reset(self) -> None:
        """Go back to zeros, before the first chunk of a clip."""
        for buffer in self._carried.values():
            self._memory.clear(buffer)
