"""Latent frames to pictures, one at a time, and one picture to a latent frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sana_rt.graph_names import DECODER, DECODER_FIRST, ENCODER
from sana_rt.runtime.backends.buffers import Buffer, HostArray
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.memory import Buffers, Region, region, single

Frames = NDArray[np.uint8]
Latents = NDArray[np.float32]


class Decoder:
    """The causal decoder: each latent frame becomes frames, given those before it.

    The feature caches exist twice. A run reads one set and writes the other.
    """

    @staticmethod
    def regions(graphs: Graphs) -> tuple[Region, ...]:
        """A latent frame, its frames, and two sets of caches."""
        later = graphs.signature(DECODER)
        caches = [
            replace(one, name=f"{one.name}.{turn}")
            for one in cache_regions(graphs)
            for turn in (0, 1)
        ]
        pictures = (
            region("autoencoder", later, "latents", "latent_frame"),
            region("autoencoder", graphs.signature(DECODER_FIRST), "frames", "first_frames"),
            region("autoencoder", later, "frames"),
        )
        return (*map(single, pictures), *caches)

    @staticmethod
    def _read_by(index: int, graphs: Graphs, buffers: Buffers) -> dict[str, Buffer]:
        """The caches that the latent frame ``index`` reads; none for the first."""
        if not index:
            return {}
        names = [one.name for one in cache_regions(graphs)]
        return {name: buffers[f"{name}.{_turn(index)}"] for name in names}

    def __init__(self, graphs: Graphs, buffers: Buffers) -> None:
        self._graphs, self._buffers = graphs, buffers
        reads = [self._read_by(index, graphs, buffers) for index in (1, 2)]
        writes = [{f"{name}_out": buffer for name, buffer in read.items()} for read in reads]
        latent = {"latents": buffers["latent_frame"]}
        self._first = graphs.program(
            graphs.bind(DECODER_FIRST, latent, {"frames": buffers["first_frames"], **writes[0]})
        )
        outputs = [{"frames": buffers["frames"], **writes[1 - turn]} for turn in (0, 1)]
        self._later = tuple(
            graphs.program(graphs.bind(DECODER, {**latent, **reads[turn]}, outputs[turn]))
            for turn in (0, 1)
        )

    def decode(self, latents: Latents, index: int) -> Frames:
        """Frames u8 [n, height, width, 3] of the clip's latent frame ``index``.

        ``latents`` are [1, C, 1, h, w]. The frames must come in order, from 0.
        """
        self._graphs.memory.fill(self._buffers["latent_frame"], latents)
        self._graphs.run(self._later[_turn(index)] if index else self._first)
        written = self._buffers["frames" if index else "first_frames"]
        frames: Frames = self._graphs.memory.download(written).squeeze(0)
        return frames

    def caches(self, index: int) -> dict[str, HostArray]:
        """A host copy of what the latent frame ``index`` will read."""
        read = self._read_by(index, self._graphs, self._buffers)
        return {name: self._graphs.memory.download(buffer) for name, buffer in read.items()}

    def restore(self, index: int, arrays: Mapping[str, HostArray]) -> None:
        """Go on at latent frame ``index`` with what :meth:`caches` returned there."""
        for name, buffer in self._read_by(index, self._graphs, self._buffers).items():
            self._graphs.memory.upload(buffer, arrays[name])


def _turn(index: int) -> int:
    """Which of the two sets of caches a later latent frame reads."""
    return (index - 1) % 2


class ImageEncoder:
    """The first frame of image-to-video."""

    @staticmethod
    def regions(graphs: Graphs) -> tuple[Region, ...]:
        """The picture and its latent frame."""
        encoder = graphs.signature(ENCODER)
        parts = (("image", "image"), ("latents", "image_latents"))
        return tuple(single(region("autoencoder", encoder, tensor, name)) for tensor, name in parts)

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
    names = [tensor.name for tensor in later.inputs if tensor.name.startswith("cache_")]
    return tuple(single(region("autoencoder", later, name)) for name in names)
