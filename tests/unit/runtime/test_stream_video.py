"""Videos that grow: playable at every moment, whatever happens to the writer."""

from __future__ import annotations

import contextlib
import io
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from sana_rt.errors import DiskFullError, RequestError, StorageError
from sana_rt.runtime import video as videos

HEIGHT, WIDTH, FPS = 64, 96, 12
SIZE = {"height": HEIGHT, "width": WIDTH, "fps": FPS}
TOLERANCE = 3  # as in `test_video`


@pytest.fixture
def clip() -> NDArray[np.uint8]:
    """61 frames, each of another grey."""
    greys = np.arange(0, 244, 4, dtype=np.uint8)
    return np.tile(greys[:, None, None, None], (1, HEIGHT, WIDTH, 3))


def greys(data: bytes) -> list[int]:
    """The grey of every frame of a file."""
    with av.open(io.BytesIO(data)) as container:
        return [int(frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]


def assert_begins(found: list[int], clip: NDArray[np.uint8]) -> None:
    np.testing.assert_allclose(found, clip[: len(found), 0, 0, 0], atol=TOLERANCE)


def test_it_can_be_played_after_every_call(tmp_path: Path, clip: NDArray[np.uint8]) -> None:
    """All frames but the last; the first call brings the name."""
    path = tmp_path / "new" / "clip.mp4"
    with videos.live_video(path, **SIZE) as write:
        assert not path.exists()
        given = 0
        for part in np.split(clip, [1, 5, 6, 40]):
            write(part)
            given += len(part)
            assert_begins(found := greys(path.read_bytes()), clip)
            assert len(found) == given - 1
    assert_begins(found := greys(path.read_bytes()), clip)
    assert len(found) == len(clip)
    assert [entry.name for entry in path.parent.iterdir()] == ["clip.mp4"]


def test_players_are_told_rate_and_length(tmp_path: Path, clip: NDArray[np.uint8]) -> None:
    path = tmp_path / "clip.mp4"
    with videos.live_video(path, **SIZE) as write:
        write(clip)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == FPS
        assert stream.duration * stream.time_base == pytest.approx(len(clip) / FPS)
        times = [float(frame.pts * stream.time_base) for frame in container.decode(video=0)]
        np.testing.assert_allclose(times, np.arange(len(clip)) / FPS, atol=1e-9)
        container.seek(int(4.2 / stream.time_base), stream=stream)
        assert next(container.decode(video=0)).pts * stream.time_base == pytest.approx(4.0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_between_frames_ends_a_whole_file(
    tmp_path: Path, clip: NDArray[np.uint8], error: type[BaseException]
) -> None:
    path = tmp_path / "clip.mp4"

    def interrupted() -> None:
        with videos.live_video(path, **SIZE) as write:
            write(clip[:7])
            raise error

    with pytest.raises(error):
        interrupted()
    assert len(greys(path.read_bytes())) == 7


def test_what_was_there_stays_until_there_is_something_to_play(
    tmp_path: Path, clip: NDArray[np.uint8]
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"before")
    with contextlib.suppress(KeyboardInterrupt), videos.live_video(path, **SIZE):
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    with videos.live_video(path, **SIZE):
        pass
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """Let files grow to ``size`` bytes; the kernel writes what fits, then refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("size", [3000, 9001, 20_000])
def test_a_fragment_that_does_not_fit_is_taken_back(tmp_path: Path, size: int) -> None:
    path = tmp_path / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (40, 1, HEIGHT, WIDTH, 3), np.uint8)
    written = []

    def write_all() -> None:
        with videos.live_video(path, **SIZE) as write:
            for frame in noise:
                write(frame)
                written.append(frame)

    with at_most(size), pytest.raises(StorageError, match=r"File too large: .*clip\.mp4"):
        write_all()
    assert len(greys(path.read_bytes())) == len(written) - 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_full_disk_is_said_so(
    tmp_path: Path, clip: NDArray[np.uint8], fill_disk: Callable[[Path], None]
) -> None:
    path = tmp_path / "clip.mp4"
    fill_disk(path)
    with pytest.raises(DiskFullError, match=r"clip\.mp4"), videos.live_video(path, **SIZE) as write:
        write(clip)
    assert not list(tmp_path.iterdir())


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    odd = videos.live_video(tmp_path / "clip.mp4", height=63, width=96, fps=12)
    with pytest.raises(RequestError, match="63 by 96 pixels"):
        odd.__enter__()
    assert not list(tmp_path.iterdir())


def test_the_bytes_need_no_file(tmp_path: Path, clip: NDArray[np.uint8]) -> None:
    """What goes to a socket piece by piece is what a file would hold."""
    path = tmp_path / "clip.mp4"
    encoder = videos.FragmentedVideo(**SIZE)
    sent = b""
    with videos.live_video(path, **SIZE) as write:
        for part in np.split(clip, [1, 5, 6, 40]):
            sent += encoder.encode(part)
            write(part)
            assert sent == path.read_bytes()
    sent += encoder.finish()
    assert sent == path.read_bytes()
    assert_begins(found := greys(sent), clip)
    assert len(found) == len(clip)


def test_a_writer_whose_file_another_replaced_says_so(
    tmp_path: Path, clip: NDArray[np.uint8]
) -> None:
    path = tmp_path / "clip.mp4"

    def write_both() -> None:
        with videos.live_video(path, **SIZE) as first:
            first(clip[:9])
            with videos.live_video(path, **SIZE) as second:
                first(clip[9:20])
                second(clip[:30])
                first(clip[20:])

    with pytest.raises(StorageError, match="Another process has written"):
        write_both()
    assert len(greys(path.read_bytes())) == 30
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]
