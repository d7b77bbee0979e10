"""Which way up pictures are, transparency, profiles and animations, against Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from sana_rt.errors import RequestError
from sana_rt.runtime import image_metadata, images

HEIGHT, WIDTH = 48, 80
LOSSLESS: dict[str, dict[str, Any]] = {"png": {}, "webp": {"lossless": True}}


def picture() -> Image.Image:
    """Every corner of another colour."""
    array = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    array[: HEIGHT // 2, : WIDTH // 2] = (250, 10, 10)
    array[: HEIGHT // 2, WIDTH // 2 :] = (10, 250, 10)
    array[HEIGHT // 2 :, : WIDTH // 2] = (10, 10, 250)
    return Image.fromarray(array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_a_picture_is_turned_upright(tmp_path: Path, form: str, orientation: int) -> None:
    path, exif = tmp_path / "picture", Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "another entry before it"
    options: dict[str, Any] = LOSSLESS.get(form, {"quality": 100, "subsampling": 0})
    picture().save(path, form, exif=exif, **options)
    with Image.open(path) as opened:
        wanted = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    assert image_metadata.orientation(path.read_bytes()) == orientation
    height, width = wanted.shape[:2]
    found = images.read_image(path, height, width)
    assert np.abs(found.astype(int) - wanted).max() <= (0 if form in LOSSLESS else 8)


@given(st.binary(max_size=64), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\xd8", b""]))
def test_damaged_metadata_is_none(data: bytes, begin: bytes) -> None:
    assert image_metadata.orientation(begin + data) in range(1, 9)
    image_metadata.is_animated(begin + data)


@given(st.binary(max_size=80))
def test_damaged_exif_is_none(data: bytes) -> None:
    chunk = len(data).to_bytes(4, "big") + b"eXIf" + data + bytes(4)
    assert image_metadata.orientation(b"\x89PNG\r\n\x1a\n" + chunk) in range(1, 9)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("form", LOSSLESS)
def test_what_is_transparent_becomes_black(tmp_path: Path, form: str, mode: str) -> None:
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1)))
    clear = picture()
    clear.putalpha(alpha)
    if mode == "P":
        clear = picture().quantize(4)
        clear.info["transparency"] = 0
    elif mode == "LA":
        clear = clear.convert("LA")
    path = tmp_path / "picture"
    clear.save(path, form, **LOSSLESS[form], exact=True)
    black = Image.new("RGBA", (WIDTH, HEIGHT), "black")
    with Image.open(path) as opened:
        wanted = np.asarray(Image.alpha_composite(black, opened.convert("RGBA")).convert("RGB"))
    with pytest.warns(UserWarning, match="is transparent in parts, which become black"):
        found = images.read_image(path, HEIGHT, WIDTH)
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_an_opaque_picture_with_alpha_is_as_one_without(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture().convert("RGBA").save(path)
    np.testing.assert_array_equal(images.read_image(path, HEIGHT, WIDTH), np.asarray(picture()))


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_another_profile_is_warned_of(tmp_path: Path, form: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "picture"
    picture().save(path, form, icc_profile=srgb)
    images.read_image(path, HEIGHT, WIDTH)
    picture().save(
        path, form, icc_profile=srgb.replace(b"s\0R\0G\0B", b"w\0i\0d\0e").replace(b"sRGB", b"wide")
    )
    with pytest.warns(UserWarning, match="a colour profile, which is not applied"):
        images.read_image(path, HEIGHT, WIDTH)


@pytest.mark.parametrize("form", ["png", "webp", "gif"])
def test_an_animation_is_refused_by_name(tmp_path: Path, form: str) -> None:
    frames = [picture(), ImageOps.invert(picture())]
    path = tmp_path / "picture"
    frames[0].save(path, form, save_all=True, append_images=frames[1:])
    with pytest.raises(RequestError, match="not a picture but an animation"):
        images.read_image(path, HEIGHT, WIDTH)


@pytest.mark.parametrize("size", [(96, 80), (32, 200), (48, 80)])
def test_padding_keeps_all_of_a_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "picture.png"
    white = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    white.save(path)
    found = images.read_image(path, *size, "pad")
    assert found.shape == (*size, 3)
    rows, columns = (np.flatnonzero(found.max(axis=(1 - axis, 2)) > 250) for axis in (0, 1))
    scale = min(size[0] / HEIGHT, size[1] / WIDTH)
    assert (len(rows), len(columns)) == (round(HEIGHT * scale), round(WIDTH * scale))
    for inner, whole in ((rows, size[0]), (columns, size[1])):
        assert abs(inner[0] - (whole - 1 - inner[-1])) <= 1
