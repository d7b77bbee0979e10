"""Latent frames to pictures, call by call, and one picture to a latent frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sana_rt.errors import ManifestReferenceError, RequestError
from sana_rt.graph_names import DECODER, DECODER_FIRST, ENCODER
from sana_rt.manifest import DecodeWindow
from sana_rt.runtime.backends.base import Program
from sana_rt.runtime.backends.buffers import Buffer, HostArray
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.memory import Region, carried, filled, region, single
from sana_rt.runtime.residence import Buffers
from sana_rt.signatures import CACHE_PREFIX

Frames = NDArray[np.uint8]
Latents = NDArray[np.float32]


class Caches:
    """What the decoder hands from one call to the next; none before the first.

    They exist twice: a call reads one set and writes the other.
    """

    @staticmethod
    def regions(graphs: Graphs) -> tuple[Region, ...]:
        """Two sets."""
        return tuple(
            carried(replace(one, name=f"{one.name}.{turn}"))
            for one in cache_regions(graphs)
            for turn in (0, 1)
        )

    def __init__(self, graphs: Graphs, buffers: Buffers) -> None:
        self._memory, self._buffers = graphs.memory, buffers
        self._window = window(graphs)
        self._names = [one.name for one in cache_regions(graphs)]

    def read_by(self, call: int) -> dict[str, Buffer]:
        """Those that a call reads."""
        if not call:
            return {}
        return {name: self._buffers[f"{name}.{(call - 1) % 2}"] for name in self._names}

    def written_by(self, call: int) -> dict[str, Buffer]:
        """Those that a call writes, by the names of its outputs."""
        return {f"{name}_out": buffer for name, buffer in self.read_by(call + 1).items()}

    def download(self, start: int) -> dict[str, HostArray]:
        """A host copy of what the call that begins at latent frame ``start`` will read."""
        read = self.read_by(self._window.call(start))
        return {name: self._memory.download(buffer) for name, buffer in read.items()}

    def upload(self, start: int, arrays: Mapping[str, HostArray]) -> None:
        """Let the call at latent frame ``start`` read what :meth:`download` returned there."""
        for name, buffer in self.read_by(self._window.call(start)).items():
            self._memory.upload(buffer, arrays[name])


class Decoder:
    """The causal decoder: latent frames become frames, given those before them.

    How many at once is said by the manifest's window; the first call is a graph of its own.
    """

    @staticmethod
    def regions(graphs: Graphs) -> tuple[Region, ...]:
        """The latent frames of a call, its frames, and the caches."""
        first, later = graphs.signature(DECODER_FIRST), graphs.signature(DECODER)
        pictures = (
            filled(region("frames", first, "latents", "first_latents")),
            region("frames", first, "frames", "first_frames"),
            filled(region("frames", later, "latents", "later_latents")),
            region("frames", later, "frames", "later_frames"),
        )
        return (*map(single, pictures), *Caches.regions(graphs))

    def __init__(self, graphs: Graphs, buffers: Buffers) -> None:
        self._graphs, self._buffers = graphs, buffers
        self._window = window(graphs)
        self._caches = Caches(graphs, buffers)
        self._first = self._program(0)
        self._later = self._program(1), self._program(2)

    def _program(self, call: int) -> Program:
        moment = "later" if call else "first"
        latents, frames = (self._buffers[f"{moment}_{name}"] for name in ("latents", "frames"))
        return self._graphs.program(
            self._graphs.bind(
                DECODER if call else DECODER_FIRST,
                {"latents": latents, **self._caches.read_by(call)},
                {"frames": frames, **self._caches.written_by(call)},
            )
        )

    def decode(self, latents: Latents, start: int) -> Frames:
        """Frames u8 [n, height, width, 3] of the call that begins at latent frame ``start``.

        ``latents`` are [1, C, T, h, w], T as the window says. Calls must come in order, from 0.
        """
        call = self._window.call(start)
        moment = "later" if call else "first"
        self._graphs.memory.fill(self._buffers[f"{moment}_latents"], latents)
        self._graphs.run(self._later[(call - 1) % 2] if call else self._first)
        written = self._buffers[f"{moment}_frames"]
        frames: Frames = self._graphs.memory.download(written).squeeze(0)
        return frames


def window(graphs: Graphs) -> DecodeWindow:
    """How the decoder is called; raises :class:`ManifestReferenceError` where there is none."""
    if graphs.decoder is None:
        raise ManifestReferenceError(
            f"The variant {graphs.variant!r} has no decoder.",
            remedy="export the checkpoint again, with its autoencoder.",
        )
    return graphs.decoder


def check_chunks(graphs: Graphs, chunks: Iterable[range]) -> None:
    """Raise :class:`RequestError` unless each chunk can be decoded before there is another."""
    found = window(graphs)
    for chunk in chunks:
        calls = list(found.calls(chunk))
        if found.lookahead or calls[-1].stop != chunk.stop:
            raise RequestError(
                f"Latent frames {chunk.start} to {chunk.stop - 1} cannot be decoded by themselves: "
                f"the decoder takes {found.first_latent_frames}, then {found.latent_frames} a call "
                f"and looks {found.lookahead} ahead.",
                expected="chunks of whole calls.",
                remedy="ask for another number of frames, or for latents only (--save-latents).",
            )


class ImageEncoder:
    """The first frame of image-to-video."""

    @staticmethod
    def regions(graphs: Graphs) -> tuple[Region, ...]:
        """The picture and its latent frame."""
        encoder = graphs.signature(ENCODER)
        parts = (("image", "image"), ("latents", "image_latents"))
        return tuple(single(region("frames", encoder, tensor, name)) for tensor, name in parts)

    def __init__(self, graphs: Graphs, buffers: Buffers) -> None:
        self._graphs, self._buffers = graphs, buffers
        self._encoder = graphs.bind(
            ENCODER, {"image": buffers["image"]}, {"latents": buffers["image_latents"]}
        )

    def encode(self, image: Frames) -> Latents:
        """Normalised latents [1, C, 1, h, w] of a picture u8 [height, width, 3]."""
        self._graphs.memory.upload(self._buffers["image"], image[None])
        self._graphs.run(self._encoder)
        return self._graphs.memory.download(self._buffers["image_latents"])


def cache_regions(graphs: Graphs) -> tuple[Region, ...]:
    """One set of the decoder's caches."""
    later = graphs.signature(DECODER)
    names = [tensor.name for tensor in later.inputs if tensor.name.startswith(CACHE_PREFIX)]
    return tuple(single(region("caches", later, name)) for name in names)
