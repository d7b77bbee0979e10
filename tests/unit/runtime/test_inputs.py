"""Tensors that a caller brings along: read without executing anything, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sana_rt.errors import RequestError, StorageError
from sana_rt.model_spec import PRESETS
from sana_rt.runtime.inputs import Inputs, PromptEmbeds, read_noise, read_prompt_embeds
from sana_rt.runtime.request import Request, for_model

MODEL = PRESETS["sana-video-2b-480p"]
SHAPE = (1, 16, 3, 8, 12)


@pytest.fixture
def request_() -> Request:
    return for_model(MODEL, {"height": 64, "width": 96, "num_frames": 9})


def embeds(**changes: Any) -> PromptEmbeds:
    values = {
        "hidden_states": np.zeros((1, 300, 2304), np.float32),
        "attention_mask": np.ones((1, 300), np.int64),
    }
    return PromptEmbeds(**values | changes)


def test_tensors_that_fit(request_: Request) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    Inputs(np.zeros(SHAPE, np.float32), (embeds(), embeds()), image).check(request_, MODEL)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (Inputs(noise=np.zeros(SHAPE[1:], np.float32)), "shape \\(16, 3, 8, 12\\).*\\(1, 16, 3"),
        (Inputs(noise=np.zeros(SHAPE)), "dtype float64.*dtype float32"),  # type: ignore[arg-type]
        (Inputs(noise=np.full(SHAPE, np.nan, np.float32)), "4,608 values that are NaN"),
        (Inputs(image=np.zeros((64, 64, 3), np.uint8)), "image.*\\(64, 96, 3\\)"),
        (Inputs(prompt_embeds=(embeds(),)), "1 prompts.*2 with guidance_scale 6"),
        (
            Inputs(prompt_embeds=(embeds(), embeds(hidden_states=np.zeros((1, 300, 8), "f4")))),
            "\\(1, 300, 2304\\)",
        ),
        (
            Inputs(prompt_embeds=(embeds(), embeds(attention_mask=np.ones((1, 300), "f4")))),
            "dtype int64",
        ),
        (
            Inputs(prompt_embeds=(embeds(), embeds(attention_mask=np.full((1, 300), 2)))),
            "values other than 0 and 1",
        ),
        (
            Inputs(prompt_embeds=(embeds(attention_mask=np.zeros((1, 300), "i8")), embeds())),
            "only zeros",
        ),
    ],
)
def test_tensors_that_do_not_fit(request_: Request, inputs: Inputs, words: str) -> None:
    with pytest.raises(RequestError, match=f"(?s){words}"):
        inputs.check(request_, MODEL)


def test_noise_from_a_file(tmp_path: Path, request_: Request) -> None:
    noise = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    read = read_noise(tmp_path / "noise.npy")
    Inputs(noise=read).check(request_, MODEL)
    np.testing.assert_array_equal(read, noise)


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.npy"
    np.save(damaged, np.zeros(SHAPE, np.float32))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    text, objects = tmp_path / "text.npy", tmp_path / "objects.npy"
    text.write_text("not an array")
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    empty, archive = tmp_path / "empty.npy", tmp_path / "archive.npz"
    empty.write_bytes(b"")
    np.savez(archive, noise=np.zeros(3))
    for path in (damaged, text, objects, empty, archive):
        with pytest.raises(RequestError, match=path.name):
            read_noise(path)
    with pytest.raises(StorageError):
        read_noise(tmp_path / "none.npy")


def test_prompt_embeddings_from_a_file(tmp_path: Path, request_: Request) -> None:
    arrays = {
        "prompt_embeds": np.ones((1, 300, 2304), np.float32),
        "prompt_attention_mask": np.ones((1, 300), np.bool_),
        "negative_prompt_embeds": np.zeros((1, 300, 2304), np.float32),
        "negative_prompt_attention_mask": np.eye(1, 300, dtype=np.int32),
    }
    path = tmp_path / "embeds.npz"
    np.savez(path, **arrays)
    negative, positive = read_prompt_embeds(path, guided=True)
    Inputs(prompt_embeds=(negative, positive)).check(request_, MODEL)
    assert (negative.hidden_states.sum(), negative.attention_mask.sum()) == (0, 1)
    assert (positive.hidden_states.mean(), positive.attention_mask.sum()) == (1, 300)
    (alone,) = read_prompt_embeds(path, guided=False)
    assert alone.hidden_states.mean() == 1


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("prompt_embeds",),
        ("prompt_embeds", "prompt_attention_mask"),
        ("prompt_embeds", "mask", "negative_prompt_embeds", "negative_prompt_attention_mask"),
    ],
)
def test_archives_with_other_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = tmp_path / "embeds.npz"
    np.savez(path, **{name: np.zeros(1, np.float32) for name in names})
    with pytest.raises(RequestError, match=r"(?s)holds.*negative_prompt_attention_mask"):
        read_prompt_embeds(path, guided=True)


def test_one_array_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "embeds.npz.npy", np.zeros(3))
    with pytest.raises(RequestError, match="one array without a name"):
        read_prompt_embeds(tmp_path / "embeds.npz.npy", guided=False)
