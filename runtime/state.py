"""A stream at rest: everything that its continuation needs, in memory or in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from sana_rt import documents
from sana_rt.array_files import ArrayArchive, DamagedArrayError, StoredArray
from sana_rt.bundle import Bundle
from sana_rt.documents import DocumentError
from sana_rt.errors import StateError
from sana_rt.files import writing
from sana_rt.model_spec import Frozen, Natural
from sana_rt.runtime.backends.buffers import HostArray
from sana_rt.runtime.inputs import Embeds, PromptEmbeds
from sana_rt.runtime.prompt_schedule import ScheduledPrompt
from sana_rt.runtime.request import Request

FORMAT_VERSION: Final = 2
_HEADER: Final = "header"  # the array of a file that holds the header as UTF-8 JSON


Kind = tuple[str, tuple[int, ...]]  # dtype and shape


class Identity(Frozen, frozen=True):
    """Which graphs a state belongs to: another model's state has other numbers in it."""

    model: str
    variant: str
    graphs: str  # SHA-256 of the hashes of all files of the variant's graphs

    def __str__(self) -> str:
        """For messages."""
        return f"{self.model!r}, variant {self.variant!r}, graphs {self.graphs[:12]}"

    @staticmethod
    def of(bundle: Bundle, variant: str) -> Identity:
        """The identity of a variant of ``bundle``."""
        manifest = bundle.manifest
        graphs = manifest.variant(variant).graphs
        paths = sorted({path for graph in graphs.values() for path in (graph.path, *graph.weights)})
        hashes = "".join(manifest.file(path).sha256 for path in paths)
        return Identity(manifest.model.name, variant, hashlib.sha256(hashes.encode()).hexdigest())


class Position(Frozen, frozen=True):
    """Where a stream is, in latent frames.

    ``committed`` are in the state, the ``pending`` after them are denoised and will be committed
    before the next chunk, and the frames before ``decoded`` have been given out.
    """

    committed: Natural
    pending: Natural
    decoded: Natural

    def __post_init__(self) -> None:
        """Frames are decoded in order, and a chunk before the next one is committed."""
        if not self.committed <= self.decoded <= self.next:
            raise ValueError(f"{self} cannot be")

    @property
    def next(self) -> int:
        """The first latent frame of the next chunk."""
        return self.committed + self.pending


class Header(Frozen, frozen=True):
    """What a snapshot says about itself; ``request`` has the prompt of the last chunk made."""

    format: Literal["sana-rt-stream"]
    format_version: Literal[2]
    identity: Identity
    request: Request
    prompts: tuple[ScheduledPrompt, ...]  # those that are still to come
    position: Position


@dataclass(frozen=True, eq=False)
class State:
    """A stream at rest. Continuing does not change it, so it can be continued several times.

    ``tensors`` are ``state_s`` f32 [L, B, h, d, d], ``state_k`` f32 [L, B, h, d], ``state_z``
    [L, B, rows, columns, D], the decoder's ``cache_…``, the prompt's ``hidden_states`` and
    ``attention_mask``, and the ``latents`` f32 [1, C, T, h, w] of the pending frames, if any.
    """

    header: Header
    tensors: Mapping[str, HostArray]

    @cached_property
    def embeds(self) -> Embeds:
        """Of the prompt of the last chunk made."""
        hidden_states, masks = self.tensors["hidden_states"], self.tensors["attention_mask"]
        rows = range(hidden_states.shape[0])
        return tuple(PromptEmbeds(hidden_states[i : i + 1], masks[i : i + 1]) for i in rows)

    def save(self, path: str | Path) -> None:
        """Write a file (numpy's ``.npz``), which is there whole or not at all.

        Raises:
            StateError: it holds NaN or infinity; what is under the name before stays.
            DiskFullError, StorageError: it could not be written.
        """
        for name, array in self.tensors.items():
            if not _finite(array):
                raise StateError(
                    f"The state was not saved: {name!r} holds NaN or infinity.",
                    remedy="resume from an earlier state.",
                )
        header = np.frombuffer(msgspec.json.encode(self.header), np.uint8)
        arrays: dict[str, Any] = {_HEADER: header, **self.tensors}
        with writing(Path(path)) as file:
            np.savez(file, **arrays)

    @staticmethod
    def load(path: str | Path) -> State:
        """Read what :meth:`save` wrote; raises :class:`StateError` if it is damaged."""
        path = Path(path)
        try:
            with ArrayArchive(path) as stored:
                header = documents.json(stored[_HEADER].data, Header)
                names = [name for name in stored if name != _HEADER]
                return State(header, {name: _values(name, stored[name]) for name in names})
        except (DamagedArrayError, DocumentError, KeyError) as error:
            raise StateError(
                f"{path} is not a readable stream state: {error}.",
                expected=f"a file that --save-state wrote, of format version {FORMAT_VERSION}.",
            ) from error

    def check(self, identity: Identity, request: Request, kinds: Mapping[str, Kind]) -> None:
        """Raise :class:`StateError` unless ``request`` can continue it on these graphs.

        ``kinds`` are those of the tensors that the graphs need.
        """
        _check_same("model", self.header.identity, identity)
        _check_same("frame size, rate or batch", _size(self.header.request), _size(request))
        found = {name: (array.dtype.name, array.shape) for name, array in self.tensors.items()}
        for name in sorted({*found, *kinds}):
            _check_same(f"kind of {name!r}", found.get(name), kinds.get(name))


def _values(name: str, stored: StoredArray) -> HostArray:
    values = np.frombuffer(stored.data, stored.dtype).reshape(stored.shape)
    if not _finite(values):
        raise DamagedArrayError(f"{name!r} holds NaN or infinity")
    return values


def _finite(values: HostArray) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _size(request: Request) -> str:
    pixels = f"{request.height} by {request.width} pixels"
    return f"{pixels}, {request.fps} frames a second, batch {request.batch}"


def _check_same(what: str, saved: object, wanted: object) -> None:
    if saved != wanted:
        raise StateError(
            f"The state was saved with another {what}: {saved}.",
            expected=f"{wanted}.",
            remedy="resume with the bundle, variant and size that the state was saved with.",
        )
