"""Video files, read back with the library's own decoder."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from sana_rt import files
from sana_rt.errors import DiskFullError, RequestError, StorageError, VideoError
from sana_rt.runtime import video as videos

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


def test_what_a_file_refuses_ffmpeg_is_what_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg writes again when it closes, and then says only that a callback failed."""
    create = files.create_partial

    class Failing(io.FileIO):
        def write(self, _: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def create_failing(path: Path) -> tuple[Path, io.FileIO]:
        partial, file = create(path)
        file.close()
        return partial, Failing(partial, "wb")

    monkeypatch.setattr(files, "create_partial", create_failing)
    noise = np.random.default_rng(0).integers(0, 255, (30, HEIGHT, WIDTH, 3), dtype=np.uint8)
    with pytest.raises(StorageError, match=r"Input/output error: .*clip\.mp4"):
        write(tmp_path / "clip.mp4", noise)
    assert list(tmp_path.iterdir()) == []


def test_what_ffmpeg_refuses_is_told(plain: NDArray[np.uint8]) -> None:
    encoder = videos.FragmentedVideo(height=HEIGHT, width=WIDTH, fps=FPS)
    encoder.encode(plain)
    encoder.finish()
    with pytest.raises(VideoError, match="FFmpeg cannot encode the video"):
        encoder.encode(plain)


def write(path: Path, clip: NDArray[np.uint8], *cuts: int) -> None:
    height, width = clip.shape[1:3]
    with videos.video(path, height=height, width=width, fps=FPS) as add:
        for part in np.split(clip, cuts):
            add(part)


def test_frames_come_back_in_order_with_their_colours(
    tmp_path: Path, plain: NDArray[np.uint8]
) -> None:
    path = tmp_path / "new" / "clip.mp4"
    write(path, plain, 1, 5)
    back = np.array(list(videos.read_video(path)), np.int64)
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


def test_full_disk_leaves_nothing(tmp_path: Path, fill_disk: Callable[[Path], None]) -> None:
    fill_disk(tmp_path / "clip.mp4")
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
        with videos.video(path, height=HEIGHT, width=WIDTH, fps=FPS) as add:
            add(plain[:2])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]
