"""Clips, chunks and sizes: one rule for what is exported, built and played."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sana_rt import geometry
from sana_rt.errors import RequestError
from sana_rt.geometry import Lengths
from sana_rt.model_spec import PRESETS

WAN = PRESETS["sana-video-2b-480p"]
LONG = PRESETS["longsana-2b-480p"]
CHUNK = LONG.chunking.chunk_frames


@given(st.integers(1, 400), st.integers(0, 400))
def test_chunks_cover_what_is_left_in_order(latent_frames: int, start: int) -> None:
    chunks = geometry.chunk_ranges(LONG, latent_frames, start)
    covered = [frame for chunk in chunks for frame in chunk]
    assert covered == list(range(start, latent_frames))


@given(st.integers(1, 300), st.integers(0, 30))
def test_a_plan_for_one_length_holds_its_chunks_and_whole_ones_more(frames: int, more: int) -> None:
    held = geometry.chunk_lengths(LONG, Lengths(frames, frames, frames))
    fresh = geometry.chunk_ranges(LONG, frames)
    assert (held.shortest, held.longest) == (min(map(len, fresh)), max(map(len, fresh)))
    if len(fresh) > 1:
        continued = geometry.chunk_ranges(LONG, frames + more * CHUNK, frames)
        assert all(held.shortest <= len(chunk) <= held.longest for chunk in continued)


@given(st.tuples(*[st.integers(1, 300)] * 3).map(sorted), st.data())
def test_a_plan_for_several_lengths_holds_every_stream_wherever_it_continues(
    lengths: list[int], data: st.DataObject
) -> None:
    shortest, usual, longest = lengths
    if shortest == longest:
        return
    held = geometry.chunk_lengths(LONG, Lengths(shortest, usual, longest))
    total = data.draw(st.integers(shortest, longest))
    start = data.draw(st.integers(0, total - 1))
    for chunk in geometry.chunk_ranges(LONG, total, start):
        assert held.shortest <= len(chunk) <= held.longest


def test_the_continuation_of_which_plans_knew_nothing() -> None:
    """86 latent frames of which 81 are there: a chunk of 5."""
    assert [*map(len, geometry.chunk_ranges(LONG, 86, 81))] == [5]
    held = geometry.chunk_lengths(LONG, Lengths(1, 81, 1024))
    assert held == (1, 10, 19)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"), [(0.1, 30, 5), (5, 16, 81), (60, 16, 961), (0.01, 16, 5)]
)
def test_seconds_become_whole_latent_frames(seconds: float, fps: int, frames: int) -> None:
    assert geometry.num_frames(seconds, fps, WAN) == frames
    assert WAN.latent_frames(frames) == (frames - 1) // 4 + 1


def test_pictures_of_a_latent_frame_begin_where_those_before_end() -> None:
    starts = [geometry.start_seconds(index, 16, WAN) * 16 for index in range(4)]
    assert starts == [0, 1, 5, 9]
    assert [geometry.video_frames(WAN, index) for index in (1, 2, 3)] == [1, 5, 9]


def test_a_patch_may_be_wider_than_high() -> None:
    transformer = msgspec.structs.replace(WAN.transformer, patch_size=(1, 1, 2))
    model = msgspec.structs.replace(WAN, transformer=transformer)
    named = geometry.size_dims(model, 40, 48)
    assert (named["rows"], named["columns"]) == (5, 3)
    with pytest.raises(RequestError, match=r"width is 40 pixels\.\n.*multiple of 16"):
        geometry.size_dims(model, 40, 40)


def test_positions_limit_the_length_and_the_size() -> None:
    longest = geometry.longest_clip(WAN)
    geometry.check_positions(WAN, longest, 480, 832, 16)
    with pytest.raises(RequestError, match="1,025 latent frames"):
        geometry.check_positions(WAN, longest + 4, 480, 832, 16)
    with pytest.raises(RequestError, match="1,025 token columns"):
        geometry.check_positions(WAN, 81, 480, 16400, 16)
