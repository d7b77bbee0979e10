"""Frames to the bytes of an mp4 and back: whole files, and pieces that play as they come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray

from sana_rt.errors import RequestError, VideoError
from sana_rt.files import storage_errors, writing
from sana_rt.runtime.comments import Tags
from sana_rt.runtime.growing_file import GrowingFile

Frames = NDArray[np.uint8]

_QUALITY: Final = {"crf": "18"}  # constant quality of x264, where 17 to 18 is visually lossless
_LIVE: Final = {"tune": "zerolatency"}  # a frame in, a frame out
_SEEK_SECONDS: Final = 2  # between the frames that a player can jump to
_NO_TAGS: Final[Tags] = {}
_FRAGMENTED: Final = {
    "movflags": "frag_every_frame+empty_moov+default_base_moof",
    "flush_packets": "1",
}


class FragmentedVideo:
    """Encodes frames to a fragmented mp4 (H.264, yuv420p, BT.709), in pieces as they come.

    For a file, a socket or a pipe: all pieces up to any one are an mp4 that can be played. Each
    frame is a fragment, encoded without looking ahead. The first piece has the ``tags``.

    Raises:
        RequestError: ``height`` or ``width`` is odd, which yuv420p cannot store.
        VideoError: FFmpeg cannot encode it.
    """

    def __init__(self, *, height: int, width: int, fps: int, tags: Tags = _NO_TAGS) -> None:
        _check_even(height, width)
        self._pieces = _Pieces()
        with _encoding():
            self._container = av.open(self._pieces, "w", format="mp4", options=_FRAGMENTED)
            self._container.metadata.update(tags)
            self._stream = _add_stream(self._container, height, width, fps, _QUALITY | _LIVE)
        self._stream.codec_context.gop_size = _SEEK_SECONDS * fps

    def encode(self, frames: Frames) -> bytes:
        """The piece that u8 [n, height, width, 3] adds; the last frame comes with the next."""
        with _encoding():
            _mux(self._container, self._stream, frames)
        return self._pieces.take()

    def finish(self) -> bytes:
        """The last piece, with the last frame; nothing can be encoded after it."""
        with _encoding():
            self._container.mux(self._stream.encode(None))
            self._container.close()
        return self._pieces.take()


@contextlib.contextmanager
def video(
    path: Path, *, height: int, width: int, fps: int, tags: Tags = _NO_TAGS
) -> Iterator[Callable[[Frames], None]]:
    """Write an mp4 (H.264, yuv420p, BT.709): a function that takes u8 [n, height, width, 3].

    The file has its name only when the block ends without error; ``tags`` are its metadata.

    Raises:
        RequestError: ``height`` or ``width`` is odd, which yuv420p cannot store.
        VideoError: FFmpeg cannot encode it.
        DiskFullError, StorageError: the file could not be written.
    """
    _check_even(height, width)
    with writing(path) as file, _encoding(), av.open(file, "w", format="mp4") as container:
        container.metadata.update(tags)
        stream = _add_stream(container, height, width, fps, _QUALITY)
        yield lambda frames: _mux(container, stream, frames)
        container.mux(stream.encode(None))


@contextlib.contextmanager
def live_video(
    path: Path, *, height: int, width: int, fps: int, tags: Tags = _NO_TAGS
) -> Iterator[Callable[[Frames], None]]:
    """Write an mp4 that can be played while it grows: a function that takes u8 [n, h, w, 3].

    The file takes its name with the first frames and is whole after every call, all frames but
    the last in it. That one follows when the block ends, with an error or without. What is under
    the name before stays until then.

    Raises:
        RequestError: as for :func:`video`.
        DiskFullError, StorageError: a fragment could not be written; those before it are kept.
    """
    encoder = FragmentedVideo(height=height, width=width, fps=fps, tags=tags)
    with GrowingFile(path) as file:
        try:
            yield lambda frames: file.append(encoder.encode(frames))
        finally:
            file.append(encoder.finish())


def read_video(path: Path) -> Iterator[Frames]:
    """The frames of a video file, u8 [height, width, 3] each."""
    with storage_errors(path), av.open(path, "r") as container:
        for frame in container.decode(video=0):
            yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


@contextlib.contextmanager
def _encoding() -> Iterator[None]:
    """Tell what FFmpeg refuses, and what a file refused FFmpeg."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        if isinstance(error.__context__, OSError):  # its end hides where it began
            raise error.__context__ from error
        raise VideoError(f"FFmpeg cannot encode the video: {error}.") from error


class _Pieces:
    """Where the muxer writes; it must not seek, because what was taken is on its way."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """All that was written since."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def _check_even(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise RequestError(
            f"The frames are {height} by {width} pixels.",
            expected="an even height and width: H.264 in yuv420p halves the colour planes.",
        )


def _add_stream(
    container: OutputContainer, height: int, width: int, fps: int, options: dict[str, str]
) -> VideoStream:
    stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    _tag(stream.codec_context)
    return stream


def _tag(codec: av.VideoCodecContext) -> None:
    """Say which colours the numbers mean; players guess by size otherwise."""
    codec.colorspace = Colorspace.ITU709
    codec.color_range = ColorRange.MPEG
    codec.color_primaries = ColorPrimaries.BT709
    codec.color_trc = ColorTrc.BT709


def _mux(container: OutputContainer, stream: VideoStream, frames: Frames) -> None:
    for frame in frames:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        yuv = rgb.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        container.mux(stream.encode(yuv))
