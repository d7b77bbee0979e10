"""What became of the clips of a list: ``results.jsonl`` beside them, to which lines are added."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Final, Literal

import msgspec

from sana_rt import documents
from sana_rt.documents import DocumentError
from sana_rt.errors import UsageError
from sana_rt.files import storage_errors
from sana_rt.model_spec import Frozen, Natural
from sana_rt.runtime.clip_record import ClipRecord

NAME: Final = "results.jsonl"
MAX_LINE_BYTES: Final = documents.MAX_BYTES


class Result(Frozen, frozen=True):
    """A clip that was begun, and how that ended; the last line of an ``output`` counts.

    ``record`` is all that the clip is made of; ``size`` are the bytes of the whole video, and
    ``seconds`` is what it took.
    """

    output: str
    status: Literal["started", "done", "failed"]
    line: int
    record: ClipRecord
    size: Natural | None = None
    seconds: float | None = None
    error: str | None = None

    @property
    def settings(self) -> bytes:
        """What decides the clip, to compare: all but the versions of programs."""
        return settings(self.record)

    def ended(self, seconds: float, *, size: int | None = None, error: str | None = None) -> Result:
        """The result of a clip that was started; with an ``error`` it failed."""
        status: Literal["done", "failed"] = "done" if error is None else "failed"
        return msgspec.structs.replace(self, status=status, seconds=seconds, size=size, error=error)


def settings(record: ClipRecord) -> bytes:
    """See :attr:`Result.settings`."""
    return msgspec.json.encode(msgspec.structs.replace(record, versions={}))


class Results:
    """The file, read once and then added to, a whole line at a time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.latest: dict[str, Result] = {}
        self._size = 0  # of whole lines: a killed process left the rest
        if self._path.exists():
            with storage_errors(self._path), self._path.open("rb") as file:
                self._read(file)

    def _read(self, file: IO[bytes]) -> None:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise self._foreign(number, f"it has more than {MAX_LINE_BYTES:,} bytes")
            if line.endswith(b"\n"):
                self._take(number, line)
                self._size += len(line)

    def _take(self, number: int, line: bytes) -> None:
        try:
            result = documents.json(line, Result)
        except DocumentError as error:
            raise self._foreign(number, error) from error
        self.latest[result.output] = result

    def _foreign(self, number: int, reason: object) -> UsageError:
        return UsageError(
            f"{self._path}, line {number}, is not what became of a clip: {reason}.",
            expected="what `sana-rt generate --prompts` of this release writes.",
            remedy="give another folder, or remove that file.",
        )

    def add(self, result: Result) -> None:
        """Write a line, which is on the disk when this returns."""
        line = msgspec.json.encode(result) + b"\n"
        with storage_errors(self._path), self._path.open("ab") as file:
            file.truncate(self._size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)
        self.latest[result.output] = result
