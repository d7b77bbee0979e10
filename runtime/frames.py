"""Frames to files and back: mp4, PNG, and the picture that image-to-video begins with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from numpy.typing import NDArray

from sana_rt.errors import RequestError
from sana_rt.files import storage_errors, write_bytes, writing

Frames = NDArray[np.uint8]
Image = NDArray[np.uint8]

_QUALITY: Final = {"crf": "18"}  # constant quality of x264, where 17 to 18 is visually lossless


@contextlib.contextmanager
def video(path: Path, *, height: int, width: int, fps: int) -> Iterator[Callable[[Frames], None]]:
    """Write an mp4 (H.264, yuv420p, BT.709): a function that takes u8 [n, height, width, 3].

    The file has its name only when the block ends without error.

    Raises:
        RequestError: ``height`` or ``width`` is odd, which yuv420p cannot store.
        DiskFullError, StorageError: the file could not be written.
    """
    if height % 2 or width % 2:
        raise RequestError(
            f"The frames are {height} by {width} pixels.",
            expected="an even height and width: H.264 in yuv420p halves both for colour.",
        )
    with writing(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options=_QUALITY)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        _tag(stream.codec_context)

        def write(frames: Frames) -> None:
            for frame in frames:
                container.mux(stream.encode(_yuv(frame)))

        yield write
        container.mux(stream.encode(None))


def read_video(path: Path) -> Iterator[Image]:
    """The frames of a video file, u8 [height, width, 3] each."""
    with storage_errors(path), av.open(path, "r") as container:
        for frame in container.decode(video=0):
            yield _rgb(frame)


def read_image(path: Path, height: int, width: int) -> Image:
    """A picture cut to the aspect of ``height`` by ``width`` around its middle, then scaled.

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
    scale = min(frame.height / height, frame.width / width)
    cut_height, cut_width = round(height * scale), round(width * scale)
    top, left = (frame.height - cut_height) // 2, (frame.width - cut_width) // 2
    picture = _rgb(frame)[top : top + cut_height, left : left + cut_width]
    if picture.shape[:2] == (height, width):
        return picture
    lanczos = Interpolation.LANCZOS
    return _rgb(_frame(picture).reformat(width=width, height=height, interpolation=lanczos))


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
