"""Sizes by aspect against diffusers' tables and its choice among them."""

from __future__ import annotations

import msgspec
import pytest
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.sana_video import pipeline_sana_video as reference

from sana_rt import frame_sizes, geometry
from sana_rt.errors import UsageError
from sana_rt.frame_sizes import Size
from sana_rt.model_spec import PRESETS, ModelSpec, SamplingSpec

TABLES = {
    "sana-video-2b-480p": reference.ASPECT_RATIO_480_BIN,
    "sana-video-2b-720p": reference.ASPECT_RATIO_720_BIN,
}


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_diffusers(name: str) -> None:
    bins = {Size(int(width), int(height)) for height, width in TABLES[name].values()}
    assert set(frame_sizes.sizes(PRESETS[name])) == bins


@pytest.mark.parametrize("name", TABLES)
def test_the_choice_is_diffusers(name: str) -> None:
    for width, height in (*frame_sizes.ASPECTS, (21, 9), (1920, 1080), (5, 4), (1080, 1350)):
        wanted = PixArtImageProcessor.classify_height_width_bin(height, width, TABLES[name])
        size = frame_sizes.of_aspect(PRESETS[name], width, height)
        assert (size.height, size.width) == wanted


@pytest.mark.parametrize("name", PRESETS)
def test_every_model_can_make_its_sizes(name: str) -> None:
    model = PRESETS[name]
    found = frame_sizes.sizes(model)
    assert len(found) == 11
    for size in found:
        model.latent_size(size.height, size.width)
    usual = Size(model.sampling.width, model.sampling.height)
    assert usual in found
    assert "16:9" in frame_sizes.aspects_of(model, usual)


def small(width: int, height: int) -> ModelSpec:
    sampling = SamplingSpec(width=width, height=height)
    return msgspec.structs.replace(PRESETS["sana-video-2b-480p"], sampling=sampling)


def test_another_model_has_its_own_number_of_pixels() -> None:
    model = small(64, 64)
    assert frame_sizes.of_aspect(model, 1, 1) == Size(64, 64)
    assert frame_sizes.of_aspect(model, 2, 1) == Size(96, 48)
    assert all(size.pixels <= 2 * 64 * 64 for size in frame_sizes.sizes(model))


@pytest.mark.parametrize(
    ("asked", "size"),
    [((1280, 720), (1280, 720)), ((1281, 719), (1280, 720)), ((1, 3), (16, 16))],
)
def test_the_nearest_size(asked: tuple[int, int], size: tuple[int, int]) -> None:
    assert frame_sizes.nearest(PRESETS["sana-video-2b-480p"], *asked) == size


def test_the_nearest_size_has_positions() -> None:
    assert frame_sizes.nearest(PRESETS["sana-video-2b-720p"], 1280, 720) == Size(1280, 704)
    assert frame_sizes.nearest(PRESETS["sana-video-2b-480p"], 1e300, 16) == Size(16384, 16)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("asked", [(1, 1), (1000, 40), (40, 1000), (1e9, 1e9)])
def test_the_nearest_size_is_one_that_the_model_can_make(
    name: str, asked: tuple[float, float]
) -> None:
    width, height = frame_sizes.nearest(PRESETS[name], *asked)
    geometry.check_positions(PRESETS[name], 1, height, width, fps=16)


def test_the_nearest_size_is_one_that_the_autoencoder_can_make() -> None:
    """LTX-2's reflects a row of latents in the one before it."""
    assert frame_sizes.nearest(PRESETS["sana-video-2b-720p"], 1000, 40) == Size(992, 64)


@pytest.mark.parametrize("text", ["", "16", "16:0", "-16:9", "16:9:4", "a:b", "nan:1", "inf:1"])
def test_what_is_no_aspect(text: str) -> None:
    with pytest.raises(UsageError, match="no size or aspect"):
        frame_sizes.parse(text, ":/")


def test_what_is() -> None:
    assert frame_sizes.parse("16:9", ":/") == frame_sizes.parse("16/9", ":/") == (16, 9)
    assert frame_sizes.parse("832x480", "x×*") == (832, 480)
