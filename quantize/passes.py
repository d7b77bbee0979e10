"""Recorded passes, read from their file when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from sana_rt import documents
from sana_rt.array_files import ArrayArchive, DamagedArrayError
from sana_rt.errors import CalibrationError
from sana_rt.recorded import EMBEDDING, HEADER, TEXT, Header, pass_member, text_member

Array = npt.NDArray[Any]


class Text(Protocol):
    """Keys and values of a prompt, by block."""

    def __len__(self) -> int:
        """How many blocks there are."""

    def __getitem__(self, block: int, /) -> tuple[Array, Array]:
        """Those of a block."""


@dataclass(frozen=True)
class Pass:
    """What the blocks are given in one pass of the transformer at ``timestep`` (0..1000).

    ``inputs`` are those of the first block but for the text's; ``text`` has (K, V) by block;
    ``embedding`` is what the final layer has beside the tokens.
    """

    timestep: float
    inputs: Mapping[str, Array]
    text: Text
    embedding: Array

    def of_block(self, index: int) -> dict[str, Array]:
        """The inputs of a block, if ``tokens`` are those in front of it."""
        text_k, text_v = self.text[index]
        return {**self.inputs, "text_k": text_k, "text_v": text_v}


class RecordedPasses(Sequence[Pass]):
    """The passes of an open file; each is read when it is asked for.

    Keys and values, most of what is recorded, are read block by block. Reading raises
    :class:`CalibrationError` where the file is damaged.
    """

    @staticmethod
    @contextmanager
    def open(path: Path, checkpoint: str) -> Iterator[RecordedPasses]:
        """Open a file that was recorded from the checkpoint with this SHA-256.

        Raises:
            StorageError: it cannot be opened.
            CalibrationError: it has no passes, is damaged, or is of another checkpoint.
        """
        with _damage_of(path):
            archive = ArrayArchive(path)
        with archive:
            with _damage_of(path):
                header = documents.json(archive[HEADER].data, Header)
            if header.checkpoint != checkpoint:
                raise CalibrationError(
                    f"{path} was recorded from the checkpoint with SHA-256 {header.checkpoint}.",
                    expected=f"{checkpoint}, the bundle's.",
                    remedy="play the prompts again (--prompts).",
                )
            if not header.passes:
                raise CalibrationError(f"{path} has no passes.", expected="at least one.")
            yield RecordedPasses(path, archive, header)

    def __init__(self, path: Path, archive: ArrayArchive, header: Header) -> None:
        self.header = header
        self._path, self._archive = path, archive

    def __len__(self) -> int:
        """How many there are."""
        return len(self.header.passes)

    @overload
    def __getitem__(self, number: int) -> Pass: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[Pass, ...]: ...
    def __getitem__(self, number: int | slice) -> Pass | tuple[Pass, ...]:
        """Read a pass, or several."""
        numbers = range(len(self))[number]
        if isinstance(numbers, range):
            return tuple(self[each] for each in numbers)
        recorded = self.header.passes[numbers]
        inputs = {name: self.read(pass_member(numbers, name)) for name in self.header.inputs}
        embedding = self.read(pass_member(numbers, EMBEDDING))
        return Pass(recorded.timestep, inputs, _RecordedText(self, recorded.prompt), embedding)

    def read(self, member: str) -> Array:
        """An array of the file."""
        with _damage_of(self._path):
            stored = self._archive[member]
        return np.frombuffer(stored.data, stored.dtype).reshape(stored.shape)


@dataclass(frozen=True, eq=False)
class _RecordedText:
    """The keys and values of a prompt."""

    passes: RecordedPasses
    prompt: int

    def __len__(self) -> int:
        return self.passes.header.blocks

    def __getitem__(self, block: int) -> tuple[Array, Array]:
        text_k, text_v = (self.passes.read(text_member(self.prompt, block, name)) for name in TEXT)
        return text_k, text_v


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Name the file in what is wrong with it; a KeyError is an array that it does not have."""
    try:
        yield
    except (DamagedArrayError, documents.DocumentError, KeyError) as error:
        raise CalibrationError(
            f"{path} is not a readable file of recorded passes: {error}.",
            expected="what this release's runtime recorded.",
            remedy="play the prompts again (--prompts).",
        ) from error
