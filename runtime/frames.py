"""Frames to files and back: mp4, PNG, and the picture that image-to-video begins with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal, Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray

from sana_rt.errors import RequestError
from sana_rt.files import PARTIAL_SUFFIX, storage_errors, write_bytes, writing

Frames = NDArray[np.uint8]
Image = NDArray[np.uint8]
#: What becomes of a picture of another aspect.
Fit = Literal["crop", "stretch"]

_QUALITY: Final = {"crf": "18"}  # constant quality of x264, where 17 to 18 is visually lossless
_LIVE: Final = {"tune": "zerolatency"}  # a frame in, a frame out
_SEEK_SECONDS: Final = 2  # between the frames that a player can jump to
_FRAGMENTED: Final = {
    "movflags": "frag_every_frame+empty_moov+default_base_moof",
    "flush_packets": "1",
}


@contextlib.contextmanager
def video(path: Path, *, height: int, width: int, fps: int) -> Iterator[Callable[[Frames], None]]:
    """Write an mp4 (H.264, yuv420p, BT.709): a function that takes u8 [n, height, width, 3].

    The file has its name only when the block ends without error.

    Raises:
        RequestError: ``height`` or ``width`` is odd, which yuv420p cannot store.
        DiskFullError, StorageError: the file could not be written.
    """
    _check_even(height, width)
    with writing(path) as file, av.open(file, "w", format="mp4") as container:
        stream = _add_stream(container, height, width, fps, _QUALITY)

        def write(frames: Frames) -> None:
            for frame in frames:
                container.mux(stream.encode(_yuv(frame)))

        yield write
        container.mux(stream.encode(None))


@contextlib.contextmanager
def live_video(
    path: Path, *, height: int, width: int, fps: int
) -> Iterator[Callable[[Frames], None]]:
    """Write an mp4 that can be played while it grows: a function that takes u8 [n, h, w, 3].

    The file is fragmented, one frame a fragment, and encoded without looking ahead; it takes its
    name with the first frames and is whole after every call, all frames but the last in it. That
    one follows when the block ends, with an error or without. What is under the name before
    stays until then.

    Raises:
        RequestError: as for :func:`video`.
        DiskFullError, StorageError: a fragment could not be written; those before it are kept.
    """
    _check_even(height, width)
    fragments = _Fragments()
    with (
        _Growing(path) as file,
        av.open(fragments, "w", format="mp4", options=_FRAGMENTED) as container,
    ):
        stream = _add_stream(container, height, width, fps, _QUALITY | _LIVE)
        stream.codec_context.gop_size = _SEEK_SECONDS * fps

        def write(frames: Frames) -> None:
            for frame in frames:
                container.mux(stream.encode(_yuv(frame)))
            file.append(fragments.take())

        try:
            yield write
        finally:
            container.mux(stream.encode(None))
            container.close()
            file.append(fragments.take())


class _Fragments:
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


class _Growing:
    """A file that only ever holds whole pieces, under its name from the first one on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._size = 0
        self._failed = False

    def __enter__(self) -> Self:
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb", buffering=0)
        return self

    def append(self, piece: bytes) -> None:
        """Add a piece, or take back what was written of it; after a failure do nothing."""
        if self._failed or not piece:
            return
        self._failed = True
        with storage_errors(self._path):
            try:
                rest = memoryview(piece)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    self._file.truncate(self._size)
                raise
            if not self._size:
                self._partial.replace(self._path)
        self._size += len(piece)
        self._failed = False

    def __exit__(self, *_: object) -> None:
        with self._file:
            if not self._size:
                self._partial.unlink(missing_ok=True)
            elif not self._failed:
                with storage_errors(self._path):
                    os.fsync(self._file.fileno())


def read_video(path: Path) -> Iterator[Image]:
    """The frames of a video file, u8 [height, width, 3] each."""
    with storage_errors(path), av.open(path, "r") as container:
        for frame in container.decode(video=0):
            yield _rgb(frame)


def read_image(path: Path, height: int, width: int, fit: Fit = "crop") -> Image:
    """A picture scaled to ``height`` by ``width``.

    ``fit`` says what becomes of another aspect: "crop" cuts the picture around its middle
    first; "stretch" distorts it, as diffusers does.

    Raises:
        RequestError: the file holds no picture that FFmpeg can decode.
    """
    with storage_errors(path):
        data = path.open("rb")
    with data:
        try:
            with av.open(data, "r") as container:
                frame = next(container.decode(video=0))
        except (av.InvalidDataError, StopIteration, IndexError) as error:
            raise RequestError(
                f"{path} is no picture that can be decoded.", expected="PNG, JPEG or WebP."
            ) from error
    picture = _rgb(frame)
    if fit == "crop":
        picture = _middle(picture, height, width)
    if picture.shape[:2] == (height, width):
        return picture
    lanczos = Interpolation.LANCZOS
    return _rgb(_frame(picture).reformat(width=width, height=height, interpolation=lanczos))


def _middle(picture: Image, height: int, width: int) -> Image:
    """The largest part around the middle that has the aspect of ``height`` by ``width``."""
    scale = min(picture.shape[0] / height, picture.shape[1] / width)
    cut = round(height * scale), round(width * scale)
    top, left = (picture.shape[0] - cut[0]) // 2, (picture.shape[1] - cut[1]) // 2
    return picture[top : top + cut[0], left : left + cut[1]]


def write_png(path: Path, image: Image) -> None:
    """Write a picture u8 [height, width, 3]."""
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width = image.shape[:2]
    codec.pix_fmt, codec.time_base = "rgb24", Fraction(1)
    packets = [*codec.encode(_frame(image)), *codec.encode(None)]
    write_bytes(path, b"".join(bytes(packet) for packet in packets))


def contact_sheet(images: Sequence[Image], columns: int) -> Image:
    """Pictures of one size in a grid, row by row; what is left over stays black."""
    rows = -(-len(images) // columns)
    height, width, channels = images[0].shape
    sheet = np.zeros((rows, columns, height, width, channels), np.uint8)
    for index, image in enumerate(images):
        sheet[index // columns, index % columns] = image
    return sheet.swapaxes(1, 2).reshape(rows * height, columns * width, channels)


def _check_even(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise RequestError(
            f"The frames are {height} by {width} pixels.",
            expected="an even height and width: H.264 in yuv420p halves both for colour.",
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


def _frame(image: Image) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def _rgb(frame: av.VideoFrame) -> Image:
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def _yuv(image: Image) -> av.VideoFrame:
    return _frame(image).reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )
