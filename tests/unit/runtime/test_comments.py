"""Comments in mp4s, GIFs and PNGs: what is written is read, by us and by FFmpeg."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from sana_rt.runtime import comments
from sana_rt.runtime.clip_file import clip_file
from sana_rt.runtime.images import read_image, write_png

TAGS = {"title": "红 circle", "comment": '{"prompt": "红 circle", "x": "' + "y" * 700 + '"}'}
SIZE = {"height": 32, "width": 48, "fps": 8}
CLIP = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)


def _write(path: Path, **options: object) -> Path:
    with clip_file(path, **SIZE, tags=TAGS, **options) as write:  # type: ignore[arg-type]
        write(CLIP[:1])
        write(CLIP[1:])
    return path


@pytest.mark.parametrize(("name", "live"), [("c.mp4", False), ("c.mp4", True), ("c.gif", False)])
def test_a_clip_says_what_it_is(tmp_path: Path, name: str, live: bool) -> None:
    path = _write(tmp_path / name, live=live)
    assert comments.read(path) == TAGS["comment"]
    with av.open(path) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(CLIP)
        assert container.metadata["comment"] == TAGS["comment"]
        if name.endswith("mp4"):
            assert container.metadata["title"] == TAGS["title"]


def test_a_picture_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write_png(path, CLIP[0], TAGS)
    assert comments.read(path) == TAGS["comment"]
    np.testing.assert_array_equal(read_image(path, 32, 48), CLIP[0])


def test_a_file_without_a_comment_has_none(tmp_path: Path) -> None:
    for name in ("c.mp4", "c.gif"):
        with clip_file(tmp_path / name, **SIZE, tags={}) as write:
            write(CLIP)
        assert comments.read(tmp_path / name) is None
    write_png(tmp_path / "c.png", CLIP[0])
    assert comments.read(tmp_path / "c.png") is None
    (tmp_path / "text").write_text("no clip at all")
    assert comments.read(tmp_path / "text") is None


@pytest.mark.parametrize("name", ["c.mp4", "c.gif", "c.png"])
def test_a_spoilt_file_has_another_comment_or_none(tmp_path: Path, name: str) -> None:
    """Cut anywhere, and with bytes changed: it ends, and raises nothing."""
    path = tmp_path / name
    if name == "c.png":
        write_png(path, CLIP[0], TAGS)
    else:
        _write(path)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for cut in random.integers(0, len(data), 100):
        path.write_bytes(data[:cut])
        comments.read(path)
    for _ in range(300):
        spoilt = bytearray(data)
        for at in random.integers(0, min(len(data), 2000), 4):
            spoilt[at] = random.choice([0, 1, 255, random.integers(256)])
        path.write_bytes(spoilt)
        comments.read(path)


@pytest.fixture
def boxes() -> Callable[..., bytes]:
    def box(kind: bytes, content: bytes) -> bytes:
        return (len(content) + 8).to_bytes(4) + kind + content

    return box


def test_a_box_that_ends_nowhere_is_read_in_bounds(
    tmp_path: Path, boxes: Callable[..., bytes]
) -> None:
    path = tmp_path / "c.mp4"
    data = b"\xff\xff\xff\xff" + b"data" + b"\0" * 8 + b"text"
    inner = boxes(b"udta", boxes(b"meta", b"\0" * 4 + boxes(b"ilst", boxes(b"\xa9cmt", data))))
    path.write_bytes(boxes(b"ftyp", b"isom" * 4) + boxes(b"moov", inner))
    assert comments.read(path) == "text"
