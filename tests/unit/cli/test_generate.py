"""``sana-rt generate`` on the small bundle."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result

from sana_rt.cli import cli
from sana_rt.runtime import clip_file, clip_record
from sana_rt.runtime.images import read_image, write_png
from sana_rt.runtime.video import read_video

PROMPT = "a red circle moving to the right"
SIZE = ("--height", "32", "--width", "48", "--num-frames", "9", "--threads", "1")
SMALL = (*SIZE, "--num-inference-steps", "3")
SECONDS = 120  # far above what a start takes, to fail rather than hang
LATENTS = (1, 16, 3, 4, 6)
PHASES = ["transformer", "decoder"]


def _generate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["generate", *map(str, arguments)])


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return tmp_path / "clip.mp4"


def test_a_video_and_its_latents_are_written(
    small_bundle: Path, tmp_path: Path, video: Path
) -> None:
    latents = tmp_path / "latents.npy"
    result = _generate(small_bundle, PROMPT, "-o", video, "--save-latents", latents, *SMALL)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{video}\n"
    assert "s per step" in result.stderr
    assert "Denoising" in result.stderr
    assert [frame.shape for frame in read_video(video)] == [(32, 48, 3)] * 9
    with av.open(video) as container:
        assert container.streams.video[0].average_rate == 8, "the model's own frame rate"
    assert np.load(latents).shape == LATENTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "latents.npy"]


def test_given_noise_and_embeddings_replace_seed_and_prompt(
    small_bundle: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    noise, embeds = tmp_path / "noise.npy", tmp_path / "embeds.npz"
    np.save(noise, random.standard_normal(LATENTS, np.float32))
    tokens, channels = 64, 64
    np.savez(
        embeds,
        prompt_embeds=random.standard_normal((1, tokens, channels), np.float32),
        prompt_attention_mask=np.ones((1, tokens), np.int64),
    )
    saved = []
    for seed in (1, 2):
        saved.append(tmp_path / f"{seed}.npy")
        given = ("--noise", noise, "--prompt-embeds", embeds, "--guidance-scale", 1)
        result = _generate(
            small_bundle, "--save-latents", saved[-1], *given, "--seed", seed, *SMALL
        )
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{saved[-1]}\n"
    np.testing.assert_array_equal(np.load(saved[0]), np.load(saved[1]))


def test_a_picture_is_the_first_frame(small_bundle: Path, tmp_path: Path) -> None:
    picture, latents = tmp_path / "picture.png", [tmp_path / "a.npy", tmp_path / "b.npy"]
    write_png(picture, np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8))
    for seed, path in enumerate(latents):
        result = _generate(
            small_bundle, PROMPT, "--save-latents", path, "--image", picture, "--seed", seed, *SMALL
        )
        assert result.exit_code == 0, result.output
    first, second = map(np.load, latents)
    np.testing.assert_array_equal(first[:, :, 0], second[:, :, 0])
    assert not np.array_equal(first[:, :, 1:], second[:, :, 1:])


def test_flags_come_before_the_file_and_the_file_before_the_model(
    small_bundle: Path, tmp_path: Path
) -> None:
    config = tmp_path / "request.toml"
    config.write_text(f'prompt = "{PROMPT}"\nheight = 32\nwidth = 80\nnum_frames = 5\n')
    latents = tmp_path / "latents.npy"
    result = _generate(
        small_bundle, "--config", config, "--save-latents", latents, "--width", "48",
        "--num-inference-steps", "1", "--threads", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert np.load(latents).shape == (1, 16, 2, 4, 6)


def test_a_dry_run_shows_the_memory_and_writes_nothing(
    small_bundle: Path, tmp_path: Path, video: Path
) -> None:
    result = _generate(small_bundle, PROMPT, "-o", video, "--dry-run", *SMALL)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split() == ["MiB", "text", "encoder", *PHASES]
    assert "caches" in result.stdout
    assert not list(tmp_path.iterdir())


def test_little_memory_is_enough_for_phases_that_take_turns(
    small_bundle: Path, tmp_path: Path, video: Path
) -> None:
    result = _generate(
        small_bundle, PROMPT, "-o", video, "--max-memory", "7MB", "--dry-run", *SMALL
    )
    assert "text encoder (0.6 MiB); then transformer (5.9 MiB); then decoder (" in result.stdout
    latents = tmp_path / "a.npy", tmp_path / "b.npy"
    for path, limit in zip(latents, ("7MB", "1GB"), strict=True):
        arguments = ("--overwrite", "--save-latents", path, "-o", video, "--max-memory", limit)
        assert _generate(small_bundle, PROMPT, *arguments, *SMALL).exit_code == 0
    assert latents[0].read_bytes() == latents[1].read_bytes()


def test_memory_that_is_not_enough_is_refused(small_bundle: Path, video: Path) -> None:
    for dry in ((), ("--dry-run",)):
        result = _generate(small_bundle, PROMPT, "-o", video, "--max-memory", "1MB", *dry, *SMALL)
        assert result.exit_code == 1
        assert "of which 1,000,000 may be used (--max-memory)" in result.stderr
        assert "allow " in result.stderr


def test_a_prompt_that_is_too_long_is_cut_and_said_so(small_bundle: Path, video: Path) -> None:
    result = _generate(small_bundle, "circle " * 200, "-o", video, *SMALL)
    assert result.exit_code == 0, result.output
    assert "The prompt is too long by" in result.stderr
    assert video.is_file()


def test_a_video_without_a_name_gets_one_of_its_own(small_bundle: Path, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        for name in (
            "a-red-circle-moving-to-the-right-7.mp4",
            "a-red-circle-moving-to-the-right-7-2.mp4",
        ):
            result = _generate(small_bundle, PROMPT, "--seed", 7, *SMALL, "--quiet")
            assert result.stdout == f"{name}\n"
            assert result.stderr == ""
            assert len(list(read_video(Path(name)))) == 9


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames/%02d.png"])
def test_a_clip_is_made_again_by_what_it_says(
    small_bundle: Path, tmp_path: Path, name: str
) -> None:
    """The command that ``inspect`` shows, run."""
    first, again = tmp_path / name, tmp_path / "again" / name
    result = _generate(small_bundle, "-5°, 'so' 圆", "-o", first, "--seed", 3, *SMALL, "--json")
    assert result.exit_code == 2, "an option, and no prompt"
    result = _generate(
        small_bundle, "-o", first, "--seed", 3, *SMALL, "--json", "--", "-5°, 'so' 圆"
    )
    assert result.exit_code == 0, result.output
    shown = CliRunner().invoke(cli, ["inspect", str(clip_file.files(first)[0]), "--json"])
    record = json.loads(shown.stdout)
    assert record["record"]["request"] == json.loads(result.stdout)["request"]
    assert str(tmp_path) not in shown.stdout.replace(str(first.parent), ""), "where files lay"
    words = shlex.split(record["command"].replace("BUNDLE", str(small_bundle)))
    result = CliRunner().invoke(
        cli, [*words[1:-2], "-o", str(again), "--threads", "1", *words[-2:]]
    )
    assert result.exit_code == 0, result.output
    made = [path.read_bytes() for path in clip_file.files(first)]
    assert len(made) == (9 if name.endswith("png") else 1)
    assert clip_record.read(clip_file.files(again)[0]) == clip_record.read(
        clip_file.files(first)[0]
    )
    if not name.endswith("mp4"):  # in tiny frames x264 is not the same from run to run
        assert made == [path.read_bytes() for path in clip_file.files(again)]


def test_a_clip_can_keep_to_itself_what_it_was_made_of(
    small_bundle: Path, tmp_path: Path, video: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    arguments = ("-o", video, "--contact-sheet", sheet, "--no-metadata", *SMALL)
    assert _generate(small_bundle, "a secret", *arguments).exit_code == 0
    for path in (video, sheet):
        assert b"secret" not in path.read_bytes()
        result = CliRunner().invoke(cli, ["inspect", str(path)])
        assert result.exit_code == 1
        assert "has no comment" in result.stderr.replace("\n", " ")


def test_json_says_what_was_made_and_how(small_bundle: Path, tmp_path: Path, video: Path) -> None:
    sheet, latents = tmp_path / "sheet.png", tmp_path / "latents.npy"
    arguments = ("--contact-sheet", sheet, "--save-latents", latents, "--seed", 5, *SMALL)
    result = _generate(small_bundle, PROMPT, "-o", video, *arguments, "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert [made["output"], made["contact_sheet"], made["latents"]] == [
        str(path) for path in (video, sheet, latents)
    ]
    assert made["bytes"] == video.stat().st_size
    assert (made["request"]["seed"], made["request"]["num_frames"]) == (5, 9)
    assert (made["variant"], made["backend"]) == ("fp32", "onnxruntime")
    seconds = made["seconds"]
    assert set(seconds) == {"encode", "load", "denoise", "decode", "write", "total"}
    assert sum(seconds.values()) - seconds["total"] == pytest.approx(seconds["total"], rel=0.5)
    plan = _generate(small_bundle, PROMPT, "-o", tmp_path / "x.mp4", *SMALL, "--dry-run", "--json")
    planned = json.loads(plan.stdout)
    (together,) = planned["loaded_at_the_same_time"]
    assert planned["total_bytes"] == together["bytes"]
    assert list(planned["phases"]) == together["phases"] == ["text encoder", *PHASES]
    assert len(planned["not_included"]) == 2


def test_a_contact_sheet_alone_is_enough(small_bundle: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = _generate(small_bundle, PROMPT, "--contact-sheet", sheet, *SMALL)
    assert result.stdout == f"{sheet}\n"
    assert read_image(sheet, 96, 144).shape == (96, 144, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("-o", "clip.mp4"),
        ("-o", "clip.gif"),
        ("--save-latents", "latents.npy"),
        ("--contact-sheet", "sheet.png"),
    ],
)
def test_nothing_is_replaced_unasked(
    small_bundle: Path, tmp_path: Path, option: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"precious")
    result = _generate(small_bundle, PROMPT, option, path, *SMALL)
    assert result.exit_code == 2
    assert "which exists" in result.stderr
    assert "--overwrite" in result.stderr
    assert path.read_bytes() == b"precious"
    result = _generate(small_bundle, PROMPT, option, path, *SMALL, "--overwrite")
    assert result.exit_code == 0, result.output
    assert path.read_bytes() != b"precious"


def test_frames_are_not_mixed_with_others(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "0400.png").write_bytes(b"precious")
    result = _generate(small_bundle, PROMPT, "-o", tmp_path / "%04d.png", *SMALL)
    assert result.exit_code == 2
    assert "0400.png" in result.stderr.replace("\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["0400.png"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ((PROMPT, "-o", "%s.png"), 2, "frames/%04d.png"),
        ((PROMPT, "-o", "clip.mp4", "--contact-sheet", "sheet.jpg"), 2, "does not end in .png"),
        ((PROMPT, "-o", "clip.mp4", "--prompt-embeds", "e.npz"), 2, "--prompt-embeds are both"),
        ((PROMPT, "-o", "clip.mp4", "--seed", "1", "--seed", "2"), 2, "'--seed' is given 2 times"),
        (("-o", "clip.mp4"), 2, "There is no prompt"),
        ((PROMPT, "-o", "clip.avi"), 2, "does not end in .mp4"),
        ((PROMPT, "-o", "clip.mp4", "--num-frames", "8"), 1, "num_frames is 8"),
        ((PROMPT, "-o", "clip.mp4", "--height", "33"), 1, "height is 33 pixels"),
        ((PROMPT, "-o", "clip.mp4", "--seed", "-1"), 2, "seed is -1"),
        ((PROMPT, "-o", "clip.mp4", "--solver", "heun"), 2, "'heun'"),
        ((PROMPT, "-o", "clip.mp4", "--variant", "fp64"), 1, "no variant 'fp64'"),
        ((PROMPT, "-o", "clip.mp4", "--backend", "gpu"), 2, "no backend 'gpu'"),
        ((PROMPT, "-o", "clip.mp4", "--noise", "none.npy"), 1, "none.npy"),
        ((PROMPT, "-o", "clip.mp4", "--image", "none.png"), 1, "none.png"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(
    small_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], exit_code: int, words: str
) -> None:
    with contextlib.chdir(tmp_path):
        result = _generate(small_bundle, *arguments)
    assert result.exit_code == exit_code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_unknown_keys_of_a_file_are_named(small_bundle: Path, tmp_path: Path, video: Path) -> None:
    config = tmp_path / "request.toml"
    config.write_text("steps = 5\n")
    result = _generate(small_bundle, PROMPT, "-o", video, "--config", config)
    assert result.exit_code == 2
    assert f"{config}: steps" in result.stderr.replace("\n", "")


def test_a_full_disk_leaves_no_video(
    small_bundle: Path, tmp_path: Path, video: Path, fill_disk: Callable[[Path], None]
) -> None:
    fill_disk(video)
    result = _generate(small_bundle, PROMPT, "-o", video, *SMALL)
    assert result.exit_code == 1
    assert "No room left" in result.stderr
    assert not list(tmp_path.iterdir())


def test_sigterm_leaves_nothing(small_bundle: Path, tmp_path: Path, video: Path) -> None:
    steps = ("--num-inference-steps", "1000")  # which no test waits for
    arguments = ["generate", str(small_bundle), PROMPT, "-o", str(video), *SIZE, *steps]
    command = [sys.executable, "-m", "sana_rt", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + SECONDS
            while not list(tmp_path.glob("*.partial")):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.terminate()
            assert process.wait(SECONDS) == 143
            assert "Interrupted" in process.stderr.read()
        finally:
            process.kill()
    assert not list(tmp_path.iterdir())


def test_help_has_an_example_for_a_person() -> None:
    text = " ".join(CliRunner().invoke(cli, ["generate", "--help"]).output.split())
    assert 'sana-rt generate out/bundle "a red circle moving to the right" -o circle.mp4' in text
    assert "[default: all]" in text
