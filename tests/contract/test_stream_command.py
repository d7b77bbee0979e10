"""``sana-rt stream``: a minute, watched, interrupted, killed, continued."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result

from sana_rt import files
from sana_rt.cli import cli
from sana_rt.errors import StateError
from sana_rt.runtime import clip_file, clip_record
from sana_rt.runtime.images import write_png
from sana_rt.runtime.pipeline import Progress
from sana_rt.runtime.session import Session
from sana_rt.runtime.state import State
from sana_rt.runtime.video import live_video

PROMPT, OTHER = "a red circle moving to the right", "a blue square"
SMALL = ("--height", "32", "--width", "48", "--threads", "1")
FPS = 8
LONG = 500  # seconds of video, which no test waits for
SECONDS = 1800  # far above what a start takes, to fail rather than hang


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return tmp_path / "clip.mp4"


def _stream(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["stream", *map(str, arguments)])


def _frames(data: bytes) -> int:
    with av.open(io.BytesIO(data)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_minute_is_exact_and_can_be_continued(
    causal_bundle: Path, tmp_path: Path, video: Path
) -> None:
    state, more = tmp_path / "state", tmp_path / "more.mp4"
    result = _stream(
        causal_bundle, PROMPT, "--seconds", 60, "-o", video, "--save-state", state,
        "--prompt-at", 20, OTHER, "--timesteps", "1000,700", *SMALL,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{video}\n"
    said = " ".join(result.stderr.split())
    assert f"From 20.12 s, where a chunk begins: {OTHER}" in said
    assert f"Continue with --resume {state}" in said
    assert _frames(video.read_bytes()) == 60 * FPS + 1
    with av.open(video) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == FPS
        assert float(stream.duration * stream.time_base) == 60 + 1 / FPS
    assert State.load(state).header.request.prompt == OTHER
    result = _stream(causal_bundle, "--resume", state, "--seconds", 61, "-o", more, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "Reading the prompt" not in result.stderr
    assert _frames(more.read_bytes()) == FPS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "more.mp4", "state"]


def test_the_first_frames_are_there_before_the_second_chunk_is(
    causal_bundle: Path, video: Path
) -> None:
    session = Session.open(causal_bundle, threads=1)
    request = session.request(prompt=PROMPT, height=32, width=48, num_frames=17)
    seen: dict[int, int] = {}

    def watch(progress: Progress) -> None:
        if progress.stage == "denoise" and video.exists():
            seen[progress.done] = _frames(video.read_bytes())

    with live_video(video, height=32, width=48, fps=FPS) as write:
        for frames in session.stream(request, progress=watch):
            write(frames)
    # Four steps make the first chunk, of three latent frames and 9 pictures, the fifth commits.
    assert seen == dict.fromkeys((5, 6, 7, 8, 9), 8)


@contextlib.contextmanager
def _running(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "sana_rt", "stream", *map(str, arguments)]
    environment = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_for(video: Path, frames: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many frames can be played; every look must find a whole file."""
    deadline = time.monotonic() + SECONDS
    while not video.exists() or _frames(video.read_bytes()) < frames:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_stream_leaves_a_video_and_the_state_of_before(
    causal_bundle: Path, tmp_path: Path, video: Path
) -> None:
    first, state = tmp_path / "first.mp4", tmp_path / "state"
    result = _stream(
        causal_bundle, PROMPT, "--seconds", 1, "-o", first, "--save-state", state, *SMALL
    )
    assert result.exit_code == 0, result.output
    before = state.read_bytes()
    arguments = ("--resume", state, "--save-state", state, "--seconds", LONG, "-o", video)
    with _running(causal_bundle, *arguments, "--threads", 1) as process:
        _wait_for(video, 20, process)
        process.kill()
        process.wait()
    assert _frames(video.read_bytes()) >= 20
    assert state.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "first.mp4", "state"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_pass_and_saves(
    causal_bundle: Path, tmp_path: Path, video: Path, number: signal.Signals
) -> None:
    """What continues it makes, bit for bit, the frames of a stream that never stopped."""
    state, rest = tmp_path / "state", tmp_path / "rest.mp4"
    arguments = (PROMPT, "--seconds", LONG, "-o", video, "--save-state", state, *SMALL)
    with _running(causal_bundle, *arguments) as process:
        _wait_for(video, 12, process)
        process.send_signal(number)
        assert process.wait(SECONDS) == 128 + number
        assert "Continue with --resume" in process.stderr.read()
    saved = State.load(state)
    position = saved.header.position
    made = 4 * position.decoded - 3
    assert _frames(video.read_bytes()) == made, "the state goes on where the video ends"
    result = _stream(
        causal_bundle, "--resume", state, "-o", rest, "--threads", 1,
        "--seconds", (made + 4) / FPS,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert made + _frames(rest.read_bytes()) == 4 * (position.decoded + 2) - 3
    session = Session.open(causal_bundle, threads=1)
    odd = position.next + 3 - position.next % 2  # latent frames: like those of LONG, of which the
    length = {"num_frames": 4 * odd - 3}  # first chunk takes one more
    request = session.request(prompt=PROMPT, height=32, width=48, **length)
    whole = np.concatenate(list(session.stream(request)))
    request = session.request(resume=saved, **length)
    np.testing.assert_array_equal(
        np.concatenate(list(session.stream(request, resume=saved))), whole[made:]
    )


def test_a_full_disk_costs_the_video_and_not_the_state(
    causal_bundle: Path, tmp_path: Path, video: Path, fill_disk: Callable[[Path], None]
) -> None:
    state = tmp_path / "state"
    fill_disk(video)
    arguments = ("--seconds", 1, "-o", video, "--save-state", state, *SMALL)
    result = _stream(causal_bundle, PROMPT, *arguments)
    assert result.exit_code == 1
    assert "No room left" in result.stderr
    assert State.load(state).header.position.decoded > 0
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_state_that_cannot_be_saved_does_not_hide_what_stopped_the_stream(
    causal_bundle: Path, tmp_path: Path, video: Path, fill_disk: Callable[[Path], None]
) -> None:
    for path in (video, tmp_path / "state"):
        fill_disk(path)
    arguments = ("--seconds", 1, "-o", video, "--save-state", tmp_path / "state", *SMALL)
    result = _stream(causal_bundle, PROMPT, *arguments)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "state was not written. No room left" in said
    assert f"No room left while writing {video}" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ((PROMPT, "-o", "clip.mp4", "--seconds", "1", "--num-frames", "9"), 2, "Both seconds and"),
        ((PROMPT, "-o", "clip.mp4", "--recommit", "--recommit"), 2, "is given 2 times"),
        (("-o", "clip.mp4"), 2, "There is no prompt"),
        ((PROMPT, "-o", "clip.avi"), 2, "does not end in .mp4"),
        ((PROMPT, "-o", "clip.mp4", "--seconds", "0"), 2, "'--seconds'"),
        ((PROMPT, "-o", "clip.mp4", "--seconds", "600"), 1, "1,201 latent frames"),
        ((PROMPT, "-o", "clip.mp4", "--prompt-at", "0", OTHER), 2, "Two prompts begin at 0 s"),
        ((PROMPT, "-o", "clip.mp4", "--prompt-at", "-1", OTHER), 2, "begins at -1 s"),
        ((PROMPT, "-o", "clip.mp4", "--prompt-at", "99", OTHER), 1, "prompt begins at 99 s"),
        ((PROMPT, "-o", "clip.mp4", "--timesteps", "9,x"), 2, "'--timesteps'"),
        ((PROMPT, "-o", "clip.mp4", "--timesteps", "9,10"), 1, "timesteps are 9, 10"),
        ((PROMPT, "-o", "clip.mp4", "--timesteps", "9,0"), 2, "timesteps is (9.0, 0.0)"),
        (("-o", "clip.mp4", "--resume", "none"), 1, "none"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(
    causal_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], exit_code: int, words: str
) -> None:
    with contextlib.chdir(tmp_path):
        result = _stream(causal_bundle, *arguments)
    assert result.exit_code == exit_code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_clip_in_one_piece_has_no_state(small_bundle: Path, video: Path) -> None:
    result = _stream(small_bundle, PROMPT, "-o", video, "--save-state", "state", *SMALL)
    assert result.exit_code == 2
    assert "in one piece" in result.stderr
    assert not video.exists()


@pytest.mark.parametrize("option", ["-o", "--contact-sheet", "--save-state"])
def test_nothing_is_overwritten_but_the_state_that_is_resumed(
    causal_bundle: Path, tmp_path: Path, option: str
) -> None:
    name = "sheet.png" if option == "--contact-sheet" else "part.mp4"
    path = tmp_path / name
    path.write_bytes(b"the part before")
    result = _stream(causal_bundle, PROMPT, option, path, *SMALL)
    assert result.exit_code == 2
    assert "which exists" in result.stderr
    assert path.read_bytes() == b"the part before"


def test_a_state_that_does_not_fit_on_the_disk_costs_the_state_only(
    causal_bundle: Path, tmp_path: Path, video: Path, fill_disk: Callable[[Path], None]
) -> None:
    state = tmp_path / "state"
    fill_disk(state)
    arguments = ("--seconds", 1, "-o", video, "--save-state", state, *SMALL)
    result = _stream(causal_bundle, PROMPT, *arguments)
    assert result.exit_code == 1
    assert "No room left" in result.stderr
    assert _frames(video.read_bytes()) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    with pytest.raises(StateError):
        State.load(video)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "%03d.png"])
def test_a_stream_begins_with_a_picture_and_says_what_it_is(
    causal_bundle: Path, tmp_path: Path, name: str
) -> None:
    picture, clip = tmp_path / "first.png", tmp_path / "made" / name
    write_png(picture, np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8))
    arguments = ("--image", picture, "--num-frames", 17, "--prompt-at", 1, OTHER, *SMALL)
    result = _stream(causal_bundle, PROMPT, "-o", clip, *arguments, "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["request"]["num_frames"] == 17
    first, *_ = clip_file.files(clip)
    record = clip_record.read(first)
    assert record.request == made["request"]
    assert [(each.seconds, each.prompt) for each in record.prompts] == [(1, OTHER)]
    assert record.inputs == {"--image": files.sha256(picture)}
    words = shlex.split(record.command_line())
    assert words[words.index("--image") :][:2] == ["--image", "FILE"]
    assert words[words.index("--prompt-at") :][:3] == ["--prompt-at", "1", OTHER]
    assert len(clip_file.files(clip)) == (17 if name.endswith("png") else 1)


def test_a_dry_run_shows_the_memory_of_any_length(causal_bundle: Path, video: Path) -> None:
    """8 fps · 5 s and 45 s: 11 and 91 latent frames."""
    shown = [
        _stream(causal_bundle, PROMPT, "-o", video, "--seconds", seconds, "--dry-run").stdout
        for seconds in (5, 45)
    ]
    assert shown[0] == shown[1]
    assert "state" in shown[0]
    assert not video.exists()
