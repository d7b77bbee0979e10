"""Equal work is a condition of every ratio."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from sana_rt.benchmarks.speed.turn import Clip, Work, taken, warm_up
from sana_rt.errors import ComparisonError
from sana_rt.export.seeded import SMALL
from sana_rt.model_spec import PRESETS
from sana_rt.runtime.request import for_model

REQUESTS = [for_model(SMALL, {"prompt": prompt, "seed": seed}) for seed, prompt in enumerate("ab")]
WORK = Work.of(SMALL, "0" * 64, REQUESTS, passes=16, decoded=34)


def test_work_is_what_was_asked_for_and_what_was_counted() -> None:
    assert (WORK.height, WORK.width, WORK.num_frames) == (64, 64, 17)
    assert (WORK.solver, WORK.guidance_scale, WORK.prompts) == ("dpmpp_2m", 6.0, 2)
    assert (WORK.passes, WORK.decoded) == (16, 34)
    WORK.check(Work.of(SMALL, "0" * 64, REQUESTS, passes=16, decoded=34), ("a", "b"))


@pytest.mark.parametrize("name", Work.__struct_fields__)
def test_work_that_differs_in_anything_is_refused_by_name(name: str) -> None:
    value = getattr(WORK, name)
    other = value + "x" if isinstance(value, str) else value + 1
    with pytest.raises(ComparisonError, match=f"{name} is {value} and {other}") as caught:
        WORK.check(msgspec.structs.replace(WORK, **{name: other}), ("fp32", "diffusers"))
    assert "fp32 and diffusers" in caught.value.happened


def test_a_warm_up_is_short_where_the_solver_allows_it() -> None:
    short = warm_up(REQUESTS[0])
    assert short == msgspec.structs.replace(REQUESTS[0], num_inference_steps=2)
    own = for_model(PRESETS["longsana-2b-480p"], {"prompt": "a"})
    assert warm_up(own) == own


def test_what_was_taken_of_a_device() -> None:
    assert taken([100, 40, 70]) == 60
    assert taken([None, None]) is None


def test_a_clip_without_frames_is_its_latents(tmp_path: Path) -> None:
    latents = np.ones((1, 2, 3, 4, 5), np.float32)
    Clip(tmp_path / "side").save(latents, None)
    assert np.array_equal(Clip(tmp_path / "side").latents(), latents)
    assert Clip(tmp_path / "side").frames() is None
