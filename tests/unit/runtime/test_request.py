"""Requests: the model's defaults, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from sana_rt.errors import RequestError, StorageError, UsageError
from sana_rt.model_spec import PRESETS, ModelSpec
from sana_rt.runtime import request as requests
from sana_rt.runtime.request import for_model

WAN = PRESETS["sana-video-2b-480p"]
LTX = PRESETS["sana-video-2b-720p"]
LONG = PRESETS["longsana-2b-480p"]


def test_defaults_are_the_models() -> None:
    request = for_model(WAN, {"prompt": "a cat"})
    assert (request.height, request.width, request.num_frames, request.fps) == (480, 832, 81, 16)
    assert (request.num_inference_steps, request.guidance_scale) == (50, 6.0)
    assert (request.solver, request.flow_shift) == ("dpmpp_2m", 8.0)
    assert (request.seed, request.batch) == (0, 2)
    assert for_model(LTX, {"prompt": ""}).width == 1280


def test_a_distilled_model_has_its_own_steps_and_shift() -> None:
    request = for_model(LONG, {"prompt": "a cat"})
    assert (request.solver, request.num_inference_steps, request.flow_shift) == ("renoise", 4, 7.0)
    assert request.batch == 1
    steps = requests.schedule(request, LONG)
    assert [step.timestep for step in steps] == [1000, 960, 889, 727]
    other = for_model(LONG, {"prompt": "a cat", "solver": "flow_euler", "num_inference_steps": 9})
    assert other.flow_shift == LONG.sampling.flow_shift
    assert len(requests.schedule(other, LONG)) == 9


def test_image_to_video_takes_euler_unless_told_otherwise() -> None:
    assert for_model(WAN, {"prompt": ""}, conditioned=True).solver == "flow_euler"
    assert for_model(WAN, {"solver": "dpmpp_2m"}, conditioned=True).solver == "dpmpp_2m"
    assert for_model(LONG, {"prompt": ""}, conditioned=True).solver == "renoise"


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (WAN, {"num_frames": 80}, "num_frames is 80.*4k \\+ 1.*77 or 81"),
        (LTX, {"num_frames": 77}, "num_frames is 77.*8k \\+ 1.*73 or 81"),
        (WAN, {"num_frames": 0}, "num_frames is 0"),
        (WAN, {"height": 470}, "height is 470 pixels.*multiple of 16.*464 or 480"),
        (LTX, {"width": 1264}, "width is 1264 pixels.*multiple of 32"),
        (WAN, {"height": 16400}, "1,025 token rows.*at most 1,024"),
        (WAN, {"num_frames": 4097}, "1,025 latent frames.*at most 1,024"),
        (WAN, {"seed": 2**64}, "seed is 18446744073709551616.*18446744073709551615"),
        (WAN, {"solver": "renoise"}, "'renoise' does not fit 'sana-video-2b-480p'"),
        (LONG, {"num_inference_steps": 9}, "num_inference_steps is 9.*4, the timesteps"),
    ],
)
def test_what_the_model_cannot_serve(model: ModelSpec, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=f"(?s){words}"):
        for_model(model, {"prompt": "", **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 5}, "unknown field `steps`"),
        ({"num_inference_steps": 0}, r"num_inference_steps is 0\.\nExpected: int >= 1\."),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": 1e9}, r"guidance_scale is 1000000000.0\.\nExpected: float < 10000.0"),
        ({"flow_shift": 0}, "flow_shift is 0"),
        ({"height": "480"}, r"height is '480'\.\nExpected: int\."),
        ({"num_frames": True}, r"num_frames is True\.\nExpected: int\."),
        ({"fps": 0}, "fps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"solver": "unipc"}, "'unipc' - at `\\$.solver`"),
        ({"timesteps": [500.0, 0.0]}, r"timesteps is \[500.0, 0.0\]"),
        ({"negative_prompt": 7 * ["long"] * 100}, r"negative_prompt is \['long', .{60,80}\.\.\."),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        for_model(WAN, {"prompt": "", **options})


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 10**5000], ids=["above", "below", "not writable"]
)
@pytest.mark.parametrize("name", [*requests.Request.__struct_fields__, "seconds"])
def test_numbers_of_hundreds_of_digits(name: str, value: int) -> None:
    """JSON and TOML have them, and floats do not."""
    options, seconds = ({}, value) if name == "seconds" else ({name: value}, None)
    with pytest.raises((UsageError, RequestError)) as caught:
        requests.asked(WAN, options, seconds=seconds)
    assert len(str(caught.value)) < 300


def test_seconds_beyond_any_number_of_frames() -> None:
    with pytest.raises(RequestError, match="no number of frames"):
        requests.asked(WAN, {}, seconds=10**308)


def test_the_largest_values_are_allowed() -> None:
    request = for_model(WAN, {"seed": 2**64 - 1, "num_frames": 4093, "height": 16384})
    assert request.seed == requests.MAX_SEED


def test_guidance_of_one_needs_no_negative_prompt() -> None:
    assert for_model(WAN, {"guidance_scale": 1}).batch == 1
    assert for_model(WAN, {"guidance_scale": 0.5}).batch == 2


def test_options_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "request.toml"
    path.write_text('prompt = "a cat"\nheight = 64\nguidance_scale = 2\n')
    request = for_model(WAN, requests.read_options(path))
    assert (request.prompt, request.height, request.guidance_scale) == ("a cat", 64, 2.0)


def test_files_with_unknown_keys_are_refused_with_their_path(tmp_path: Path) -> None:
    path = tmp_path / "request.toml"
    path.write_text('prompt = "a cat"\nsteps = 5\n[size]\nheight = 64\n')
    with pytest.raises(UsageError, match=f"{path}: steps, {path}: size"):
        requests.read_options(path)
    path.write_text("height = [")
    with pytest.raises(UsageError, match="is not TOML"):
        requests.read_options(path)
    path.write_bytes(b"prompt = '\xff'")
    with pytest.raises(UsageError, match="is not TOML"):
        requests.read_options(path)
    with pytest.raises(StorageError):
        requests.read_options(tmp_path / "none.toml")


def test_named_dimensions_of_a_clip() -> None:
    request = for_model(WAN, {"height": 64, "width": 96})
    named = requests.dims(request, WAN)
    assert (named["batch"], named["rows"], named["columns"]) == (2, 4, 6)
    assert [named[f"latent_height{x}"] for x in ("", "_x2", "_x4", "_x8")] == [8, 16, 32, 64]
    assert (named["height"], named["width"], named["latent_width"]) == (64, 96, 12)


def test_every_field_has_a_default_or_comes_from_the_model() -> None:
    """A new field of the model's sampling must not slip past a request."""
    fields = set(msgspec.structs.asdict(WAN.sampling)) | {"prompt"}
    required = {field.name for field in msgspec.structs.fields(requests.Request) if field.required}
    assert required == fields
