"""Video and picture files, read back with the library's own decoder."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from sana_rt.errors import DiskFullError, RequestError, StorageError
from sana_rt.runtime import frames

HEIGHT, WIDTH, FPS = 64, 96, 12
COLOURS = [
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 100, 50),
    (20, 180, 90), (128, 128, 128), (250, 240, 10),
]  # fmt: skip

# 8-bit YCbCr has 219 levels for 256, twice rounded, and x264 at quality 18 adds a level or so.
COLOUR_TOLERANCE = 3


@pytest.fixture
def plain() -> NDArray[np.uint8]:
    """One frame of each colour."""
    return np.array(COLOURS, np.uint8)[:, None, None].repeat(HEIGHT, 1).repeat(WIDTH, 2)


def write(path: Path, clip: NDArray[np.uint8], *cuts: int) -> None:
    height, width = clip.shape[1:3]
    with frames.video(path, height=height, width=width, fps=FPS) as add:
        for part in np.split(clip, cuts):
            add(part)


def test_frames_come_back_in_order_with_their_colours(
    tmp_path: Path, plain: NDArray[np.uint8]
) -> None:
    path = tmp_path / "new" / "clip.mp4"
    write(path, plain, 1, 5)
    back = np.array(list(frames.read_video(path)), np.int64)
    assert back.shape == plain.shape
    middle = back[:, HEIGHT // 2, WIDTH // 2]
    np.testing.assert_allclose(middle, COLOURS, atol=COLOUR_TOLERANCE)
    assert [entry.name for entry in path.parent.iterdir()] == ["clip.mp4"]


def test_players_are_told_rate_length_and_colour_space(
    tmp_path: Path, plain: NDArray[np.uint8]
) -> None:
    path = tmp_path / "clip.mp4"
    write(path, plain)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (FPS, len(plain))
        assert float(stream.duration * stream.time_base) == pytest.approx(len(plain) / FPS)
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, codec.height, codec.width) == (
            "h264",
            "yuv420p",
            HEIGHT,
            WIDTH,
        )
        bt709, limited = 1, 1  # of ISO/IEC 23091-2 and of FFmpeg
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (bt709,) * 3
        assert codec.color_range == limited


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="63 by 96 pixels"):
        write(tmp_path / "clip.mp4", np.zeros((1, 63, 96, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """`/dev/full` answers every write as a full file system does."""
    (tmp_path / "clip.mp4.partial").symlink_to("/dev/full")
    clip = np.random.default_rng(0).integers(0, 255, (30, HEIGHT, WIDTH, 3), dtype=np.uint8)
    with pytest.raises(DiskFullError, match=r"clip\.mp4"):
        write(tmp_path / "clip.mp4", clip)
    assert not list(tmp_path.iterdir())


def test_an_error_between_frames_leaves_the_old_file(
    tmp_path: Path, plain: NDArray[np.uint8]
) -> None:
    path = tmp_path / "clip.mp4"
    write(path, plain)
    before = path.read_bytes()

    def interrupted() -> None:
        with frames.video(path, height=HEIGHT, width=WIDTH, fps=FPS) as add:
            add(plain[:2])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_contact_sheet_as_png(tmp_path: Path, plain: NDArray[np.uint8]) -> None:
    sheet = frames.contact_sheet(list(plain[:7]), columns=3)
    assert sheet.shape == (3 * HEIGHT, 3 * WIDTH, 3)
    assert tuple(sheet[HEIGHT, WIDTH]) == COLOURS[4]
    assert not sheet[2 * HEIGHT :, WIDTH:].any()
    frames.write_png(tmp_path / "sheet.png", sheet)
    back = frames.read_image(tmp_path / "sheet.png", *sheet.shape[:2])
    np.testing.assert_array_equal(back, sheet)


def test_a_picture_is_cut_to_the_aspect_and_scaled(tmp_path: Path) -> None:
    """The middle of a wide picture: its left and right thirds are cut off."""
    wide = np.zeros((90, 270, 3), np.uint8)
    wide[:, 90:180] = (30, 200, 90)
    frames.write_png(tmp_path / "wide.png", wide)
    square = frames.read_image(tmp_path / "wide.png", 32, 32)
    assert square.shape == (32, 32, 3)
    np.testing.assert_allclose(square[4:-4, 4:-4], np.full((24, 24, 3), (30, 200, 90)), atol=1)


def test_a_picture_can_be_stretched_as_diffusers_does(tmp_path: Path) -> None:
    """All of a wide picture stays: its thirds are those of the square."""
    colours = np.array([(200, 20, 20), (30, 200, 90), (10, 40, 220)], np.uint8)
    wide = np.broadcast_to(colours.repeat(90, axis=0), (90, 270, 3))
    frames.write_png(tmp_path / "wide.png", np.ascontiguousarray(wide))
    square = frames.read_image(tmp_path / "wide.png", 48, 48, fit="stretch")
    assert square.shape == (48, 48, 3)
    np.testing.assert_allclose(square[:, (8, 24, 40)], np.broadcast_to(colours, (48, 3, 3)), atol=1)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"picture\.png is no picture"):
        frames.read_image(path, 32, 32)
    with pytest.raises(StorageError):
        frames.read_image(tmp_path / "none.png", 32, 32)
