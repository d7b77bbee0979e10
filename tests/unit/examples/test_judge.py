"""The judge is right about clips whose content is known, and wrong about shuffled ones."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from examples.shapes import judge, world
from examples.shapes.world import Language, Scene, Subject, Window

from sana_rt.errors import RequestError
from sana_rt.model_spec import PRESETS, SamplingSpec
from sana_rt.runtime.images import read_image
from sana_rt.runtime.request import Request
from sana_rt.runtime.session import Session
from sana_rt.runtime.video import read_video, video

NUM_CLIPS = 144
RIGHT = 0.99
# |accuracy - chance| of 144 shuffled clips: three standard deviations at most
CHANCE_SPREAD = 3 * math.sqrt(0.25 / NUM_CLIPS)


def random_scenes() -> list[Scene]:
    generator = np.random.default_rng(11)
    moving = itertools.product(world.SHAPES, world.DIRECTIONS, world.SPEEDS)
    subjects = [(*attributes,) for attributes in moving]
    scenes = []
    for index in range(NUM_CLIPS):
        shape, direction, speed = subjects[index % len(subjects)]
        if index % 9 == 0:
            direction = speed = world.STILL
        colour = list(world.COLOURS)[int(generator.integers(len(world.COLOURS)))]
        background = list(world.BACKGROUNDS)[int(generator.integers(len(world.BACKGROUNDS)))]
        x, y = generator.uniform(0, world.SIZE, 2)
        scenes.append(
            Scene(
                Subject(colour, shape, direction, speed),
                background,
                float(generator.uniform(8.5, 11)),
                (float(x), float(y)),
            )
        )
    return scenes


def frames(scene: Scene, window: Window = world.WHOLE_CLIP) -> judge.Frames:
    return ((world.render(scene, window) + 1) * 127.5).round().astype(np.uint8)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return random_scenes()


@pytest.fixture(scope="module")
def clips(scenes: list[Scene]) -> list[judge.Frames]:
    return [frames(scene) for scene in scenes]


@pytest.fixture
def scene() -> Scene:
    return Scene(Subject("green", "triangle", "lower_left", "slow"), "grey", 10.0, (3.0, 60.0))


def test_ground_truth_is_read_right(scenes: list[Scene], clips: list[judge.Frames]) -> None:
    scores = judge.score([judge.read(clip) for clip in clips], [scene.subject for scene in scenes])
    for attribute, score in scores.items():
        assert score.n == NUM_CLIPS
        assert score.fraction >= RIGHT, attribute


def test_shuffled_clips_are_right_by_chance_only(
    scenes: list[Scene], clips: list[judge.Frames]
) -> None:
    subjects = [scene.subject for scene in scenes]
    readings = [judge.read(clip) for clip in clips]
    order = np.random.default_rng(0).permutation(NUM_CLIPS)
    scores = judge.score([readings[index] for index in order], subjects)
    for attribute, score in scores.items():
        values = [getattr(subject, attribute) for subject in subjects]
        shares = [values.count(value) / NUM_CLIPS for value in set(values)]
        chance = sum(share**2 for share in shares)
        assert abs(score.fraction - chance) < CHANCE_SPREAD, attribute


def test_mp4_does_not_mislead(
    scenes: list[Scene], clips: list[judge.Frames], tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    readings = []
    for clip in clips[:48]:
        with video(path, height=world.SIZE, width=world.SIZE, fps=world.FPS) as write:
            write(clip)
        readings.append(judge.read(np.stack(list(read_video(path)))))
    scores = judge.score(readings, [scene.subject for scene in scenes[:48]])
    assert min(score.fraction for score in scores.values()) >= RIGHT


@pytest.mark.parametrize(
    ("change", "attribute", "seen"),
    [
        ({"colour": "white"}, "colour", "white"),
        ({"shape": "square"}, "shape", "square"),
        ({"direction": "left"}, "direction", "left"),
        ({"speed": "fast"}, "speed", "fast"),
    ],
)
def test_one_change_changes_one_attribute(
    scene: Scene, change: dict[str, str], attribute: str, seen: str
) -> None:
    changed = dataclasses.replace(scene, subject=dataclasses.replace(scene.subject, **change))
    before, after = judge.read(frames(scene)), judge.read(frames(changed))
    assert getattr(after, attribute) == seen
    for other in set(judge.ATTRIBUTES) - {attribute}:
        assert getattr(after, other) == getattr(before, other)


def test_played_backwards_it_moves_the_other_way(scene: Scene) -> None:
    assert judge.read(frames(scene)[::-1]).direction == "upper_right"


def test_the_end_of_a_minute_is_read_like_its_beginning(scene: Scene) -> None:
    beginning = judge.read(frames(scene, Window(num_frames=80)))
    end = judge.read(frames(scene, Window(num_frames=80, first_frame=401)))
    for attribute in judge.ATTRIBUTES:
        assert getattr(end, attribute) == getattr(beginning, attribute)


def test_an_empty_picture_shows_nothing(scene: Scene) -> None:
    empty = np.full((17, world.SIZE, world.SIZE, 3), 100, np.uint8)
    reading = judge.read(empty)
    assert not any(reading.agrees(scene.subject, attribute) for attribute in judge.ATTRIBUTES)


def test_stability_and_jitter_tell_a_shaking_clip(scene: Scene) -> None:
    steady = judge.read(frames(scene))
    shift = np.random.default_rng(1).integers(-3, 4, (17, 2))
    rolled = [
        np.roll(frame, tuple(offset), (0, 1))
        for frame, offset in zip(frames(scene), shift, strict=True)
    ]
    grown = [
        frames(dataclasses.replace(scene, radius=10.0 if index % 2 else 7.0))[index]
        for index in range(17)
    ]
    assert steady.stability > 0.95
    assert steady.jitter < 0.2
    assert judge.read(np.stack(rolled)).jitter > 1
    assert judge.read(np.stack(grown)).stability < 0.8


def test_wilson_interval_has_its_published_values() -> None:
    score = judge.wilson(9, 10)  # Brown, Cai, DasGupta 2001: 0.596 to 0.982
    assert (round(score.low, 3), round(score.high, 3)) == (0.596, 0.982)
    assert judge.wilson(0, 20).low == 0.0
    assert judge.wilson(20, 20).high == pytest.approx(1.0)


def test_a_contact_sheet_has_a_row_a_clip(clips: list[judge.Frames]) -> None:
    sheet = judge.contact_sheet(clips[:3], columns=5)
    assert sheet.shape == (3 * world.SIZE, 5 * world.SIZE, 3)
    np.testing.assert_array_equal(sheet[: world.SIZE, : world.SIZE], clips[0][0])
    np.testing.assert_array_equal(sheet[: world.SIZE, 4 * world.SIZE :], clips[0][-1])


def test_held_out_prompts_are_distinct_and_in_both_languages() -> None:
    subjects = world.held_out_subjects()
    english = [world.prompt(subject, background) for subject, background in subjects]
    chinese = [world.prompt(subject, background, "zh") for subject, background in subjects]
    assert len(set(english)) == len(english) == len(set(chinese))
    assert all(text.isascii() for text in english)
    assert not any(character.isascii() for text in chinese for character in text)


class TruthfulSession:
    """Plays what the prompt says, by drawing it; the prompts in ``lies`` show nothing."""

    def __init__(self, lies: int = 0, **sampling: int) -> None:
        values = {"height": world.SIZE, "width": world.SIZE, "num_frames": 17, "fps": world.FPS}
        self.model = msgspec.structs.replace(
            PRESETS["sana-video-2b-480p"], sampling=SamplingSpec(**(values | sampling))
        )
        self.lies = lies
        self.requests: list[Request] = []

    def generate(self, request: Request) -> Iterator[judge.Frames]:
        index = len(self.requests)
        self.requests.append(request)
        (subject, background) = next(
            (subject, background)
            for subject, background in world.held_out_subjects()
            for language in ("en", "zh")
            if world.prompt(subject, background, language) == request.prompt
        )
        shown = frames(Scene(subject, background, 10.0, (20.0, 40.0)), Window(request.num_frames))
        if index < self.lies:
            shown[:] = 0
        yield from np.array_split(shown, 3)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_trial_plays_held_out_prompts_and_scores_them(language: Language) -> None:
    session = TruthfulSession(lies=3)
    verdict = judge.run(cast("Session", session), judge.Trial(language, prompts=12, seed=5))
    for score in verdict.scores.values():
        assert (score.fraction, score.n) == (9 / 12, 12)
    assert len({request.prompt for request in session.requests}) == 12
    assert [request.seed for request in session.requests] == list(range(5, 17))
    assert verdict.steadiness["stability"] > 0.95


def test_of_a_long_clip_the_last_ten_seconds_are_judged() -> None:
    session = TruthfulSession()
    verdict = judge.run(cast("Session", session), judge.Trial(seconds=15, prompts=2))
    assert session.requests[0].num_frames == 15 * world.FPS + 1
    assert [len(clip) for clip in verdict.clips] == [80, 80]


def test_a_model_of_another_world_is_refused() -> None:
    session = TruthfulSession(height=480)
    with pytest.raises(RequestError, match="480 by 64 pixels"):
        judge.run(cast("Session", session), judge.Trial(prompts=1))


def test_a_scorer_of_quality_plays_english_prompts() -> None:
    session, done = TruthfulSession(lies=1), []
    scores = judge.followed(cast("Session", session), 4, lambda *counts: done.append(counts))
    assert {name: score.fraction for name, score in scores.items()} == dict.fromkeys(
        judge.ATTRIBUTES, 3 / 4
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(request.prompt.isascii() for request in session.requests)


def test_the_command_refuses_as_those_of_sana_rt_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(judge.main, [str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")


def test_the_command_prints_the_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Session, "open", lambda *_, **__: TruthfulSession())
    sheet = tmp_path / "sheet.png"
    arguments = ["bundle", "--prompts", "4", "--sheet", str(sheet)]
    result = CliRunner().invoke(judge.main, [*arguments, "--json"], catch_exceptions=False)
    figures = msgspec.json.decode(result.stdout)
    assert {"colour", "shape", "direction", "speed"} <= figures.keys()
    assert figures["direction"].keys() == {"fraction", "low", "high", "n"}
    assert figures["direction"]["n"] == 4
    assert read_image(sheet, 4 * world.SIZE, 9 * world.SIZE).shape[2] == 3
    shown = CliRunner().invoke(judge.main, arguments, catch_exceptions=False)
    assert "100.0%" in shown.stdout
