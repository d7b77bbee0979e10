"""Boundaries of a clip, from what ended when."""

from __future__ import annotations

import itertools

import pytest

from sana_rt.benchmarks.speed.session_turn import Event, boundaries


def events(*ends: tuple[str, float]) -> list[Event]:
    """What ended when, by the host; by the device's clock everything lasts twice as long."""
    lasted = [None, *(2 * (end - start) for (_, start), (_, end) in itertools.pairwise(ends))]
    return [Event(*end, each) for end, each in zip(ends, lasted, strict=True)]  # type: ignore[arg-type]


def test_a_clip_in_one_piece() -> None:
    found = boundaries(
        10.0,
        11.0,
        events(
            ("step", 13.0), ("step", 14.0), ("step", 16.0), ("latents", 16.5),
            ("frames", 17.0), ("frames", 18.0),
        ),
    )  # fmt: skip
    assert found == {
        "step": [2.0, 4.0],  # by the device's clock; the first has no beginning
        "denoise": [5.5],
        "decode": [1.5],
        "first_frame": [7.0],
        "clip": [8.0],
    }


def test_a_stream_of_chunks() -> None:
    found = boundaries(
        0.0,
        1.0,
        events(
            ("step", 2.0), ("step", 3.0), ("latents", 3.0), ("frames", 4.0), ("frames", 5.0),
            ("commit", 6.0), ("step", 7.0), ("step", 8.0), ("latents", 9.0), ("frames", 10.0),
        ),
    )  # fmt: skip
    assert found == {
        "step": [2.0, 2.0],  # not the one behind a commit, which also starts the chunk
        "commit": [2.0],
        "denoise": [2.0 + 4.0],
        "decode": [2.0 + 1.0],
        "first_frame": [4.0],
        "clip": [10.0],
    }


def test_without_a_decoder_a_clip_ends_with_its_latents() -> None:
    found = boundaries(0.0, 1.0, events(("step", 2.0), ("latents", 3.0)))
    assert found == {"denoise": [2.0], "clip": [3.0]}


def test_parts_add_up_to_the_clip() -> None:
    ends = ("step", 1.5), ("latents", 2.0), ("frames", 2.25), ("commit", 3.0), ("latents", 4.0)
    found = boundaries(0.0, 1.0, events(*ends, ("frames", 4.5)))
    (clip,) = found["clip"]
    assert 1.0 + found["denoise"][0] + found["decode"][0] == pytest.approx(clip)
