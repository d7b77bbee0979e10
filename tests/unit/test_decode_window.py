"""How a decoder is called, and which ways of calling it cannot work."""

from __future__ import annotations

import msgspec
import pytest

from sana_rt.decode_window import DecodeWindow, misfits
from sana_rt.model_spec import LTX2_VAE

WINDOW = DecodeWindow(
    latent_frames=2,
    frames=16,
    first_latent_frames=3,
    first_frames=17,
    lookahead=2,
    caches=1,
    lookback=1,
    blend=16,
)


def test_a_window_sees_what_is_around_the_new_latent_frames() -> None:
    calls = list(WINDOW.calls(range(9)))
    assert calls == [range(3), range(3, 5), range(5, 7), range(7, 9)]
    seen = [WINDOW.sees(call, 9) for call in calls]
    assert seen == [range(5), range(2, 7), range(4, 9), range(6, 9)]
    assert (len(seen[0]), len(seen[1])) == (WINDOW.first_seen, WINDOW.seen)
    assert [WINDOW.call(call.start) for call in calls] == [0, 1, 2, 3]


def test_a_window_that_works_has_no_misfit() -> None:
    assert not list(misfits(WINDOW, LTX2_VAE))


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"frames": 15}, "frames", "16"),
        ({"first_frames": 24}, "first_frames", "17"),
        ({"caches": 0}, "caches", "1"),
        ({"blend": 0}, "caches", "0"),
        ({"blend": 17}, "blend", "at most 16"),
        ({"lookahead": 1}, "blend", "at most 8"),
        ({"lookback": 4}, "lookback", "at most 3"),
        ({"lookback": 0}, "lookback", "1 or more"),
    ],
)
def test_what_cannot_work_is_named(change: dict[str, int], field: str, expected: str) -> None:
    (found,) = misfits(msgspec.structs.replace(WINDOW, **change), LTX2_VAE)
    assert found.field == field
    assert found.expected.startswith(expected)
