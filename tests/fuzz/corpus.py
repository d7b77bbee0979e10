"""Spoilt files without end, made of those that were worth keeping."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.fuzz.target import Target


class Corpus:
    """The seeds of a target and what is made of them; the same for the same ``seed``."""

    def __init__(self, target: Target, folder: Path, seed: int) -> None:
        self._random = Random(f"{target.name} {seed}")
        self._mutate = target.mutate
        self.seeds = target.seeds(folder)

    def spoil(self) -> bytes:
        """Spoil one of the seeds, once or a few times."""
        data = self._random.choice(self.seeds)
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            data = self._mutate(data, self._random)
        return data

    def keep(self, data: bytes) -> None:
        """Let a file be a seed: it went where none had gone before."""
        self.seeds.append(data)
