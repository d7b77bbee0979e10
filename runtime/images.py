"""Pictures: the one that image-to-video begins with, PNG, and contact sheets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from sana_rt.errors import RequestError
from sana_rt.files import read_at_most, storage_errors, write_bytes
from sana_rt.runtime import comments, image_metadata
from sana_rt.runtime.comments import Tags

Image = NDArray[np.uint8]
Fit = Literal["crop", "stretch", "pad"]


class _Format(NamedTuple):
    """How files of a format begin and end, and FFmpeg's decoder of it.

    A file goes to its one decoder in one packet. FFmpeg's demuxers, of which some fetch other
    files and addresses, never see it.
    """

    codec: str
    begin: bytes
    at: int = 0
    end: bytes = b""


_FORMATS: Final = (
    _Format("png", b"\x89PNG\r\n\x1a\n", end=b"IEND"),
    _Format("mjpeg", b"\xff\xd8\xff", end=b"\xff\xd9"),
    _Format("webp", b"WEBP", at=8),
    _Format("bmp", b"BM"),
)
_OPAQUE: Final = 255
#: What makes a picture upright, by its orientation in EXIF.
_TURNS: Final[Mapping[int, Callable[[Image], Image]]] = {
    1: lambda picture: picture,
    2: np.fliplr,
    3: lambda picture: np.rot90(picture, 2),
    4: np.flipud,
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: np.rot90(picture, -1),
    7: lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
    8: np.rot90,
}
_NO_TAGS: Final[Tags] = {}
_SHEET_COLUMNS: Final = 3
_SHEET_PICTURES: Final = 9
_HEAD_BYTES: Final = 12
_MAX_BYTES: Final = 1 << 28
_MAX_PIXELS: Final = 1 << 26
_OPTIONS: Final = {
    "err_detect": "crccheck+bitstream+buffer+explode",  # or truncated files have grey areas
    "max_pixels": str(_MAX_PIXELS),  # FFmpeg looks at it before it takes memory for them
}
_EXPECTED: Final = f"a whole PNG, JPEG, WebP or BMP of at most {_MAX_PIXELS:,} pixels."


def read_image(path: Path, height: int, width: int, fit: Fit = "crop") -> Image:
    """A picture scaled to ``height`` by ``width``; its format is read off its content.

    It is turned as its EXIF says. What is transparent becomes black, and the colours of another
    profile than sRGB are taken for sRGB's; both are warned of. ``fit`` says what becomes of
    another aspect: "crop" cuts the picture around its middle first; "stretch" distorts it, as
    diffusers does; "pad" leaves it whole between black bars.

    Returns:
        u8 [height, width, 3].

    Raises:
        RequestError: the file holds no picture that can be decoded, or only a part of one, or an
            animation.
        StorageError: it cannot be read.
    """
    picture = _decode(path)
    if fit == "crop":
        picture = _middle(picture, height, width)
    elif fit == "pad":
        return _padded(picture, height, width)
    return _scaled(picture, height, width)


def _scaled(picture: Image, height: int, width: int) -> Image:
    if picture.shape[:2] == (height, width):
        return picture
    lanczos = Interpolation.LANCZOS
    return _rgb(_frame(picture).reformat(width=width, height=height, interpolation=lanczos))


def _padded(picture: Image, height: int, width: int) -> Image:
    """All of the picture in the middle of ``height`` by ``width``, what is left over black."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    inner_height, inner_width = (max(1, round(side * scale)) for side in picture.shape[:2])
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    padded = np.zeros((height, width, 3), np.uint8)
    inner = _scaled(picture, inner_height, inner_width)
    padded[top : top + inner_height, left : left + inner_width] = inner
    return padded


def _middle(picture: Image, height: int, width: int) -> Image:
    """The largest part around the middle that has the aspect of ``height`` by ``width``."""
    scale = min(picture.shape[0] / height, picture.shape[1] / width)
    cut_height, cut_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (picture.shape[0] - cut_height) // 2, (picture.shape[1] - cut_width) // 2
    return picture[top : top + cut_height, left : left + cut_width]


def write_png(path: Path, image: Image, tags: Tags = _NO_TAGS) -> None:
    """Write a picture u8 [height, width, 3], with ``tags`` as text in it."""
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width = image.shape[:2]
    codec.pix_fmt, codec.time_base = "rgb24", Fraction(1)
    packets = [*codec.encode(_frame(image)), *codec.encode(None)]
    write_bytes(path, comments.png(b"".join(bytes(packet) for packet in packets), tags))


class ContactSheet:
    """Pictures of a clip at even distances, chosen as its frames come by."""

    def __init__(self, num_frames: int) -> None:
        count = min(num_frames, _SHEET_PICTURES)
        last = max(count - 1, 1)
        self._wanted = {index * (num_frames - 1) // last for index in range(count)}
        self._seen = 0
        self._pictures: list[Image] = []

    def add(self, frames: Image) -> None:
        """Look at the clip's next frames, u8 [n, height, width, 3]."""
        for number, picture in enumerate(frames, self._seen):
            if number in self._wanted:
                self._pictures.append(picture.copy())
        self._seen += len(frames)

    def write(self, path: Path, tags: Tags = _NO_TAGS) -> None:
        """Write them as one picture, if there are any."""
        if self._pictures:
            write_png(path, contact_sheet(self._pictures, _SHEET_COLUMNS), tags)


def contact_sheet(images: Sequence[Image], columns: int) -> Image:
    """Pictures of one size in a grid, row by row; what is left over stays black."""
    rows = -(-len(images) // columns)
    height, width, channels = images[0].shape
    sheet = np.zeros((rows, columns, height, width, channels), np.uint8)
    for index, image in enumerate(images):
        sheet[index // columns, index % columns] = image
    return sheet.swapaxes(1, 2).reshape(rows * height, columns * width, channels)


def _decode(path: Path) -> Image:
    with storage_errors(path), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        form = next((form for form in _FORMATS if head.startswith(form.begin, form.at)), None)
        data = head + read_at_most(file, _MAX_BYTES) if form else b""
    if head.startswith(b"GIF8") or image_metadata.is_animated(data):
        raise RequestError(
            f"{path} is not a picture but an animation, or in a format for such.",
            expected=_EXPECTED,
            remedy="save the frame that the video is to begin with as a PNG.",
        )
    if form is None or len(data) > _MAX_BYTES or form.end not in data:
        raise RequestError(f"{path} is not a picture that can be read.", expected=_EXPECTED)
    try:
        decoder = av.CodecContext.create(form.codec, "r")
        assert isinstance(decoder, av.VideoCodecContext)
        decoder.options = _OPTIONS
        frame, *_ = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
        picture = _opaque(frame, path)
        _check_profile(data, path)
    except (av.FFmpegError, ValueError, MemoryError, OverflowError) as error:
        raise RequestError(
            f"{path} is not a picture that can be decoded: {error}.", expected=_EXPECTED
        ) from error
    return np.ascontiguousarray(_TURNS[image_metadata.orientation(data)](picture))


def _opaque(frame: av.VideoFrame, path: Path) -> Image:
    """The colours of a frame, on black where it is transparent."""
    if not (frame.format.has_palette or any(each.is_alpha for each in frame.format.components)):
        return _rgb(frame)
    rgba = np.asarray(frame.to_ndarray(format="rgba"), np.uint8)
    alpha = rgba[..., 3:].astype(np.uint16)
    if (alpha == _OPAQUE).all():
        return rgba[..., :3]
    warnings.warn(f"{path} is transparent in parts, which become black.", stacklevel=2)
    return ((rgba[..., :3] * alpha + _OPAQUE // 2) // _OPAQUE).astype(np.uint8)


def _check_profile(data: bytes, path: Path) -> None:
    """Warn of colours that are not shown as they are meant."""
    profile = image_metadata.colour_profile(data)
    if profile is not None and b"sRGB" not in profile.replace(b"\0", b""):  # its text has 16 bits
        warnings.warn(
            f"{path} has a colour profile, which is not applied: its colours are taken for sRGB. "
            "Convert it to sRGB first if they look wrong.",
            stacklevel=2,
        )


def _frame(image: Image) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def _rgb(frame: av.VideoFrame) -> Image:
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
