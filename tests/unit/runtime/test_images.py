"""Pictures are read by what they are, in few formats, whole or not at all."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sana_rt import machine
from sana_rt.errors import RequestError, StorageError
from sana_rt.runtime import images

HEIGHT, WIDTH = 64, 96
COLOUR = (30, 200, 90)
PNG = b"\x89PNG\r\n\x1a\n"
FORMATS = {
    "png": ("png", "rgb24"),
    "jpeg": ("mjpeg", "yuvj420p"),
    "webp": ("libwebp", "yuv420p"),
    "bmp": ("bmp", "bgr24"),
}


def encoded(name: str) -> bytes:
    """A picture of one colour with noise below it."""
    picture = np.full((HEIGHT, WIDTH, 3), COLOUR, np.uint8)
    picture[HEIGHT // 2 :] = np.random.default_rng(0).integers(256, size=(HEIGHT // 2, WIDTH, 3))
    codec, pixels = FORMATS[name]
    encoder = av.VideoCodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt = HEIGHT, WIDTH, pixels
    encoder.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_told_by_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture.txt"
    path.write_bytes(encoded(name))
    picture = images.read_image(path, HEIGHT, WIDTH)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    top = picture[: HEIGHT // 4].astype(int)
    np.testing.assert_allclose(top, np.broadcast_to(COLOUR, top.shape), atol=4)


@pytest.mark.parametrize("name", FORMATS)
def test_no_part_of_a_picture_is_one(tmp_path: Path, name: str) -> None:
    data, path = encoded(name), tmp_path / "picture"
    assert len(data) > 100
    for length in [*range(len(data) // 50, len(data), len(data) // 50), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(RequestError, match=r"picture is not a picture .* (?:read|decoded)"):
            images.read_image(path, 32, 32)


def png(width: int, height: int, data: bytes) -> bytes:
    """A grey PNG whose header says so and whose pixels are ``data``."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(1 << 13, (1 << 13) + 1), (1 << 20, 1 << 20), (0, 9)]
)
def test_a_header_of_too_many_pixels_is_refused_before_they_are(
    tmp_path: Path, width: int, height: int
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height, zlib.compress(bytes(1 << 20))))
    before = machine.peak_resident_bytes() or 0
    with pytest.raises(RequestError, match="not a picture that can be decoded"):
        images.read_image(path, 32, 32)
    assert (machine.peak_resident_bytes() or 0) - before < 64 << 20


def test_a_spoilt_checksum_is_refused(tmp_path: Path) -> None:
    data = bytearray(png(8, 8, zlib.compress(bytes(9 * 8))))
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    assert not images.read_image(path, 8, 8).any()
    data[-14] ^= 1  # of the pixels' CRC
    path.write_bytes(data)
    with pytest.raises(RequestError, match="not a picture that can be decoded"):
        images.read_image(path, 8, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1)])
def test_the_thinnest_pictures_are_scaled(tmp_path: Path, size: tuple[int, int]) -> None:
    images.write_png(tmp_path / "thin.png", np.full((*size, 3), 77, np.uint8))
    np.testing.assert_array_equal(images.read_image(tmp_path / "thin.png", 32, 80), 77)


def test_a_contact_sheet_as_png(tmp_path: Path) -> None:
    greys = np.arange(10, 80, 10, dtype=np.uint8)
    pictures = list(np.tile(greys[:, None, None, None], (1, HEIGHT, WIDTH, 3)))
    sheet = images.contact_sheet(pictures, columns=3)
    assert sheet.shape == (3 * HEIGHT, 3 * WIDTH, 3)
    assert tuple(sheet[HEIGHT, WIDTH]) == (greys[4],) * 3
    assert not sheet[2 * HEIGHT :, WIDTH:].any()
    images.write_png(tmp_path / "sheet.png", sheet)
    back = images.read_image(tmp_path / "sheet.png", *sheet.shape[:2])
    np.testing.assert_array_equal(back, sheet)


def test_a_picture_is_cut_to_the_aspect_and_scaled(tmp_path: Path) -> None:
    """The middle of a wide picture: its left and right thirds are cut off."""
    wide = np.zeros((90, 270, 3), np.uint8)
    wide[:, 90:180] = (30, 200, 90)
    images.write_png(tmp_path / "wide.png", wide)
    square = images.read_image(tmp_path / "wide.png", 32, 32)
    assert square.shape == (32, 32, 3)
    np.testing.assert_allclose(square[4:-4, 4:-4], np.full((24, 24, 3), (30, 200, 90)), atol=1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        PNG,
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"ffconcat version 1.0\nfile other.png\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n",
        b"GIF89a" + bytes(40),
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"BM" + b"\xff" * 60,
    ],
)
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"picture\.png is not a picture"):
        images.read_image(path, 32, 32)
    with pytest.raises(StorageError):
        images.read_image(tmp_path / "none.png", 32, 32)


def test_a_picture_can_be_stretched_as_diffusers_does(tmp_path: Path) -> None:
    """All of a wide picture stays: its thirds are those of the square."""
    colours = np.array([(200, 20, 20), (30, 200, 90), (10, 40, 220)], np.uint8)
    wide = np.broadcast_to(colours.repeat(90, axis=0), (90, 270, 3))
    images.write_png(tmp_path / "wide.png", np.ascontiguousarray(wide))
    square = images.read_image(tmp_path / "wide.png", 48, 48, fit="stretch")
    assert square.shape == (48, 48, 3)
    np.testing.assert_allclose(square[:, (8, 24, 40)], np.broadcast_to(colours, (48, 3, 3)), atol=1)
