"""Latent frames to pictures, call by call, and one picture to a latent frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from sana_rt.decode_window import DecodeWindow
from sana_rt.errors import ManifestReferenceError, RequestError
from sana_rt.graph_names import DECODER, DECODER_FIRST, DECODER_WHOLE, ENCODER
from sana_rt.model_spec import LTX2VAESpec, ModelSpec
from sana_rt.runtime.backends.base import Program
from sana_rt.runtime.backends.buffers import Buffer, HostArray
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.memory import Region, carried, filled, region, single
from sana_rt.runtime.residence import Buffers
from sana_rt.signatures import CACHE_PREFIX

#: Tensors of the size of the largest that are there at the same time; see docs/log.md.
LIVE_TENSORS: Final = 4

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


class Decoder(ABC):
    """A way to make frames of latent frames, call by call."""

    #: The graphs that it runs.
    names: ClassVar[tuple[str, ...]]

    @staticmethod
    @abstractmethod
    def regions(graphs: Graphs) -> tuple[Region, ...]:
        """What it needs of the device."""

    @staticmethod
    @abstractmethod
    def calls(graphs: Graphs, left: range) -> Iterator[range]:
        """The new latent frames of each call that decodes those that are ``left``."""

    @staticmethod
    @abstractmethod
    def check(graphs: Graphs, chunks: Sequence[range]) -> None:
        """Raise :class:`RequestError` unless each chunk can be decoded before there is another."""

    @staticmethod
    def activations(model: ModelSpec, frames: int, pixels: int) -> int:
        """Bytes of float32 activations, roughly, for a backend that sizes them as it runs."""
        del model, frames, pixels
        return 0

    @abstractmethod
    def __init__(self, graphs: Graphs, buffers: Buffers) -> None:
        """Bind everything, so that nothing is allocated later."""

    @abstractmethod
    def decode(self, latents: Latents, chunk: range, call: range) -> Frames:
        """Frames u8 [n, height, width, 3] of a call.

        ``latents`` [1, C, T, h, w] are those of the ``chunk``. Calls must come in order, from 0.
        """


class WindowDecoder(Decoder):
    """Some latent frames a call, and what the manifest's window sees around them.

    The first call is a graph of its own.
    """

    names = (DECODER_FIRST, DECODER)

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

    @staticmethod
    def calls(graphs: Graphs, left: range) -> Iterator[range]:
        """As the window says."""
        return window(graphs).calls(left)

    @staticmethod
    def check(graphs: Graphs, chunks: Sequence[range]) -> None:
        """Chunks must be whole calls, and what looks around needs all of a clip."""
        found = window(graphs)
        around = found.lookback or found.lookahead
        for chunk in chunks:
            calls = list(found.calls(chunk))
            apart = around and (len(chunks) > 1 or chunk.start or chunk.stop < found.first_seen)
            if apart or calls[-1].stop != chunk.stop:
                raise RequestError(
                    f"Latent frames {chunk.start} to {chunk.stop - 1} cannot be decoded by "
                    f"themselves: the decoder takes {found.first_latent_frames}, then "
                    f"{found.latent_frames} a call, looks {found.lookback} back and "
                    f"{found.lookahead} ahead.",
                    expected="chunks of whole calls.",
                    remedy="ask for another number of frames, or for latents only "
                    "(--save-latents).",
                )

    def __init__(self, graphs: Graphs, buffers: Buffers) -> None:
        self._graphs, self._buffers = graphs, buffers
        self._window = window(graphs)
        self._caches = Caches(graphs, buffers)
        most = self._window.seen
        self._views = {
            count: buffers.sized(seen=count)
            for count in range(most - self._window.lookahead, most + 1)
        }
        self._first = self._program(0, most)
        self._later = {
            (call % 2, count): self._program(call, count)
            for call in (1, 2)
            for count in self._views
        }

    def _latents(self, call: int, seen: int) -> Buffer:
        return self._views[seen]["later_latents" if call else "first_latents"]

    def _program(self, call: int, seen: int) -> Program:
        frames = self._buffers["later_frames" if call else "first_frames"]
        return self._graphs.program(
            self._graphs.bind(
                DECODER if call else DECODER_FIRST,
                {"latents": self._latents(call, seen), **self._caches.read_by(call)},
                {"frames": frames, **self._caches.written_by(call)},
            )
        )

    def decode(self, latents: Latents, chunk: range, call: range) -> Frames:
        """See :meth:`Decoder.decode`."""
        number = self._window.call(call.start)
        seen = self._window.sees(call, chunk.stop)
        count = len(seen) if number else self._window.seen
        part = latents[:, :, seen.start - chunk.start : seen.stop - chunk.start]
        self._graphs.memory.fill(self._latents(number, count), part)
        self._graphs.run(self._later[number % 2, count] if number else self._first)
        written = self._buffers["later_frames" if number else "first_frames"]
        frames: Frames = self._graphs.memory.download(written).squeeze(0)
        return frames


class WholeDecoder(Decoder):
    """A clip in one call."""

    names = (DECODER_WHOLE,)

    @staticmethod
    def regions(graphs: Graphs) -> tuple[Region, ...]:
        """The clip's latent frames and its frames."""
        whole = graphs.signature(DECODER_WHOLE)
        latents = filled(region("frames", whole, "latents", "whole_latents"))
        return single(latents), single(region("frames", whole, "frames", "whole_frames"))

    @staticmethod
    def calls(graphs: Graphs, left: range) -> Iterator[range]:
        """All of them at once."""
        del graphs
        return iter((left,) if left else ())

    @staticmethod
    def check(graphs: Graphs, chunks: Sequence[range]) -> None:
        """A clip must be one chunk."""
        graphs.signature(DECODER_WHOLE)
        if len(chunks) > 1 or any(chunk.start for chunk in chunks):
            raise RequestError(
                f"The clip has {len(chunks)} chunks, which cannot be decoded at once.",
                expected="a clip of one chunk.",
                remedy="ask for a shorter clip.",
            )

    @staticmethod
    def activations(model: ModelSpec, frames: int, pixels: int) -> int:
        """Those of the last stage, which is as large as the pixels."""
        vae = model.vae
        assert isinstance(vae, LTX2VAESpec), "no other autoencoder decodes a clip at once"
        width = vae.decoder_block_out_channels[0] // vae.upsample_factor[0]
        return LIVE_TENSORS * 4 * width * frames * pixels // vae.patch_size**2

    def __init__(self, graphs: Graphs, buffers: Buffers) -> None:
        self._graphs, self._buffers = graphs, buffers
        self._program = graphs.program(
            graphs.bind(
                DECODER_WHOLE,
                {"latents": buffers["whole_latents"]},
                {"frames": buffers["whole_frames"]},
            )
        )

    def decode(self, latents: Latents, chunk: range, call: range) -> Frames:
        """See :meth:`Decoder.decode`."""
        del chunk, call
        self._graphs.memory.fill(self._buffers["whole_latents"], latents)
        self._graphs.run(self._program)
        frames: Frames = self._graphs.memory.download(self._buffers["whole_frames"]).squeeze(0)
        return frames


#: The one that takes the most memory first.
_WAYS: Final = (WholeDecoder, WindowDecoder)


def ways(graphs: Graphs, chunks: Sequence[range]) -> tuple[type[Decoder], ...]:
    """The ways to decode a clip of these chunks, the one that takes the most memory first.

    Raises :class:`RequestError` if there is none.
    """
    found: list[type[Decoder]] = []
    refusals: list[RequestError] = []
    for way in _WAYS:
        if not graphs.signatures.keys() >= set(way.names):
            continue
        try:
            way.check(graphs, chunks)
        except RequestError as error:
            refusals.append(error)
        else:
            found.append(way)
    if not found:
        raise refusals[-1]
    return tuple(found)


def way_of(names: Collection[str]) -> type[Decoder]:
    """The way that runs the graphs called ``names``."""
    return next(way for way in _WAYS if set(way.names) == set(names))


def window(graphs: Graphs) -> DecodeWindow:
    """How the decoder is called; raises :class:`ManifestReferenceError` where there is none."""
    if graphs.decoder is None:
        raise ManifestReferenceError(
            f"The variant {graphs.variant!r} has no decoder.",
            remedy="export the checkpoint again, with its autoencoder.",
        )
    return graphs.decoder


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
