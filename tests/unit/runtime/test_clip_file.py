"""Where clips go: mp4, GIF, numbered PNGs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import av
import numpy as np
import pytest

from sana_rt.errors import UsageError
from sana_rt.runtime import clip_file
from sana_rt.runtime.images import ContactSheet, read_image

SIZE = {"height": 32, "width": 48, "fps": 12}
CLIP = np.repeat(np.arange(12, dtype=np.uint8)[:, None, None, None] * 20, 32, 1)
CLIP = np.ascontiguousarray(np.broadcast_to(CLIP, (12, 32, 48, 3)))


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "f/%04d.png", "%d.png", "shot-%03d.png"])
def test_names_say_the_format(name: str) -> None:
    clip_file.check_name(Path(name))


@pytest.mark.parametrize(
    "name", ["a.avi", "a", "a.png", "%s.png", "%d-%d.png", "%d%.png", "%f.png"]
)
def test_other_names_are_refused_with_those_that_are_not(name: str) -> None:
    with pytest.raises(UsageError, match=r"frames/%04d\.png"):
        clip_file.check_name(Path(name))


def test_frames_are_counted_from_one_and_those_of_before_go(tmp_path: Path) -> None:
    pattern = tmp_path / "new" / "shot-%03d.png"
    for count in (12, 5):
        with clip_file.clip_file(pattern, **SIZE, tags={}) as write:
            write(CLIP[:1])
            write(CLIP[1:count])
        names = [path.name for path in clip_file.files(pattern)]
        assert names == [f"shot-{number:03d}.png" for number in range(1, count + 1)]
    for path, frame in zip(clip_file.files(pattern), CLIP, strict=False):
        np.testing.assert_array_equal(read_image(path, 32, 48), frame)


@pytest.mark.parametrize(("live", "left"), [(False, 0), (True, 3)])
def test_an_error_takes_frames_back_unless_they_were_to_be_watched(
    tmp_path: Path, live: bool, left: int
) -> None:
    pattern = tmp_path / "%d.png"
    with (
        contextlib.suppress(KeyboardInterrupt),
        clip_file.clip_file(pattern, **SIZE, tags={}, live=live) as write,
    ):
        write(CLIP[:3])
        raise KeyboardInterrupt
    assert len(list(tmp_path.iterdir())) == left


def test_a_gif_has_the_colours_and_the_pace(tmp_path: Path) -> None:
    path = tmp_path / "clip.gif"
    with clip_file.clip_file(path, **SIZE, tags={}) as write:
        for frame in CLIP:
            write(frame[None])
    with av.open(path) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.duration == pytest.approx(1e6 * len(CLIP) / 12, abs=2e4)
    np.testing.assert_array_equal(shown, CLIP)  # one colour a frame, so nothing is lost


@pytest.mark.parametrize("live", [False, True])
def test_an_interrupted_gif_is_not_there_unless_it_was_to_be_watched(
    tmp_path: Path, live: bool
) -> None:
    path = tmp_path / "c.gif"
    with (
        contextlib.suppress(KeyboardInterrupt),
        clip_file.clip_file(path, **SIZE, tags={}, live=live) as write,
    ):
        write(CLIP[:3])
        assert path.exists() == live
        raise KeyboardInterrupt
    assert len(list(tmp_path.iterdir())) == live
    if live:
        with av.open(path) as container:
            shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        np.testing.assert_array_equal(shown, CLIP[:3])


@pytest.mark.parametrize(
    ("count", "wanted"), [(12, [0, 1, 2, 4, 5, 6, 8, 9, 11]), (2, [0, 1]), (1, [0])]
)
def test_a_contact_sheet_spans_the_clip(tmp_path: Path, count: int, wanted: list[int]) -> None:
    sheet = ContactSheet(count)
    sheet.add(CLIP[:1])
    sheet.add(CLIP[1:count])
    sheet.write(tmp_path / "sheet.png")
    rows = -(-len(wanted) // 3)
    picture = read_image(tmp_path / "sheet.png", 32 * rows, 48 * 3)
    middles = picture[16::32, 24::48, 0].reshape(-1)[: len(wanted)]
    assert list(middles // 20) == wanted


def test_a_clip_that_ended_early_has_what_was_seen(tmp_path: Path) -> None:
    sheet = ContactSheet(12)
    sheet.add(CLIP[:5])
    sheet.write(tmp_path / "sheet.png")
    assert read_image(tmp_path / "sheet.png", 64, 144).shape == (64, 144, 3)
