"""`sana-rt generate --prompts`: a list of clips, made once each, whatever stops it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sana_rt.cli import cli, list_results, prompt_list
from sana_rt.cli.wanted_size import Wanted
from sana_rt.errors import DeviceLostError, DiskFullError, NonFiniteError, UsageError
from sana_rt.runtime import clip_record
from sana_rt.runtime.session import Session
from sana_rt.runtime.video import read_video

SIZE = ("--height", "32", "--width", "32", "--num-frames", "5")
SMALL = (*SIZE, "--num-inference-steps", "1", "--guidance-scale", "1", "--threads", "1")
LIST = """a red circle

{"prompt": "a blue square", "seed": 7, "size": "48x32", "seconds": 0.1}
a red circle
"""
NAMES = ["0001-a-red-circle-0.mp4", "0003-a-blue-square-7.mp4", "0004-a-red-circle-0.mp4"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "list.txt"
    path.write_text(LIST)
    return path


@pytest.fixture
def run(small_bundle: Path, prompts: Path, tmp_path: Path) -> Any:
    def run(*arguments: str, folder: str = "clips") -> Result:
        given = ["--prompts", str(prompts), "-o", str(tmp_path / folder), *SMALL, *arguments]
        return CliRunner().invoke(cli, ["generate", str(small_bundle), *given])

    return run


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def outcomes(folder: Path) -> list[tuple[str, str]]:
    return [(each["output"], each["status"]) for each in results(folder)]


def videos(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.mp4")
    }


def played(monkeypatch: pytest.MonkeyPatch, errors: dict[int, BaseException]) -> list[str]:
    """What is played; the n-th clip, from 0, ends with its error after its first frames."""
    prompts: list[str] = []
    generate = Session.generate

    def failing(self: Session, request: Any, *rest: Any, **options: Any) -> Iterator[Any]:
        prompts.append(request.prompt)
        for frames in generate(self, request, *rest, **options):
            yield frames
            if len(prompts) - 1 in errors:
                raise errors[len(prompts) - 1]

    monkeypatch.setattr(Session, "generate", failing)
    return prompts


def test_each_line_is_a_video(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "clips"
    opened = []
    session_open = Session.open
    monkeypatch.setattr(Session, "open", lambda *a, **k: opened.append(a) or session_open(*a, **k))
    result = run()
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{folder}\n"
    assert len(opened) == 1, "one session for all"
    assert sorted(videos(folder)) == NAMES
    assert [frame.shape for frame in read_video(folder / NAMES[0])] == [(32, 32, 3)] * 5
    assert next(read_video(folder / NAMES[1])).shape == (32, 48, 3)
    assert clip_record.read(folder / NAMES[1]).request["seed"] == 7
    assert outcomes(folder) == [(name, status) for name in NAMES for status in ("started", "done")]
    assert "1 of 3: 0001-a-red-circle-0.mp4, " in result.stderr
    assert "left" in result.stderr
    assert result.stderr.count("0.1 s become 5 frames") == 1
    before = videos(folder)
    again = run("--json")
    assert again.exit_code == 0
    assert "3 of 3 videos are there already" in again.stderr
    assert videos(folder) == before
    made = json.loads(again.stdout)
    assert (made["made"], made["kept"], made["failed"]) == (0, 3, 0)
    assert [each["line"] for each in made["results"]] == [1, 3, 4]


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (DiskFullError("full"), 1)]
)
def test_what_stops_the_list_leaves_it_resumable(
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    folder = tmp_path / "clips"
    with monkeypatch.context() as patch:
        played(patch, {1: error})
        stopped = run()
    assert stopped.exit_code == code
    assert "The same command goes on where this stopped" in stopped.stderr
    assert sorted(videos(folder)) == NAMES[:1], "each video is whole or absent"
    assert outcomes(folder)[-1] == (NAMES[1], "started")
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"output": "torn')  # of a process that was killed while it wrote
    before = videos(folder)
    prompts = played(monkeypatch, {})
    assert run().exit_code == 0
    assert prompts == ["a blue square", "a red circle"]
    assert sorted(videos(folder)) == NAMES
    assert videos(folder)[NAMES[0]] == before[NAMES[0]]
    assert all(status in ("started", "done") for _, status in outcomes(folder))


def test_an_error_of_one_prompt_does_not_end_the_list(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clips"
    with monkeypatch.context() as patch:
        played(patch, {1: NonFiniteError("block_00 wrote NaN.")})
        result = run()
    assert result.exit_code == 1
    assert "1 of 3 videos failed: those of the lines 3." in result.stderr
    assert sorted(videos(folder)) == [NAMES[0], NAMES[2]]
    (failed,) = (each for each in results(folder) if each["status"] == "failed")
    assert (failed["line"], failed["error"]) == (3, "block_00 wrote NaN.")
    prompts = played(monkeypatch, {})
    assert run().exit_code == 0
    assert prompts == ["a blue square"], "what failed is tried again"


def test_a_lost_device_ends_it(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = played(monkeypatch, {0: DeviceLostError("gone")})
    assert run().exit_code == 1
    assert len(prompts) == 1


def test_other_settings_are_refused_or_made_again(
    run: Any, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clips"
    prompts.write_text("one\ntwo\n")
    assert run().exit_code == 0
    before = videos(folder)
    refused = run("--negative-prompt", "dull")
    assert refused.exit_code == 2
    assert "2 of the videos in" in refused.stderr
    assert "negative_prompt was , is dull" in refused.stderr
    assert videos(folder) == before
    prompts.write_text('{"prompt": "new"}\none\n{"prompt": "two", "num_inference_steps": 2}\n')
    made = played(monkeypatch, {})
    grown = run()
    assert grown.exit_code == 0, grown.output
    assert made == ["new", "two"], "a line that moved is known by its settings"
    whole = (folder / "0003-two-0.mp4").stat().st_size
    (folder / "0003-two-0.mp4").write_bytes(b"short")
    edited = run()
    assert edited.exit_code == 2
    assert f"0003-two-0.mp4 (it has 5 bytes, had {whole:,})" in edited.stderr
    assert (folder / "0003-two-0.mp4").read_bytes() == b"short"
    assert run("--overwrite").exit_code == 0
    assert made == ["new", "two", "two"]
    prompts.write_text("new\none\ntwo, but other\n")
    (folder / "0003-two-but-other-0.mp4").write_bytes(b"mine")
    foreign = run()
    assert foreign.exit_code == 2
    assert "0003-two-but-other-0.mp4 (results.jsonl does not know it)" in foreign.stderr
    assert (folder / "0003-two-but-other-0.mp4").read_bytes() == b"mine"
    assert run("--overwrite").exit_code == 0
    assert made[-1] == "two, but other"


def test_lines_put_above_one_leave_its_video(run: Any, tmp_path: Path, prompts: Path) -> None:
    text, names = "", ["0001-a-0.mp4", "0001-a-0-2.mp4", "0001-a-0-3.mp4"]
    before: dict[str, tuple[int, bytes]] = {}
    for steps, name in enumerate(names, 1):
        text = f'{{"prompt": "a", "num_inference_steps": {steps}}}\n{text}'
        prompts.write_text(text)
        result = run("--overwrite")
        assert result.exit_code == 0, result.output
        assert f"1 of 1: {name}, " in result.stderr
        found = videos(tmp_path / "clips")
        assert {each: found[each] for each in before} == before
        before = found
    assert sorted(before) == sorted(names)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("fine\n{\n", "line 2: It is not JSON"),
        ('{"seed": 1}', "line 1: It has no prompt"),
        ('fine\n\n{"prompt": "x", "sed": 1}', "line 3: 'sed' is unknown"),
        ('{"prompt": "x", "seconds": "5"}', "line 1: seconds is '5'"),
        ('{"prompt": "x", "aspect": 1.5}', "line 1: aspect is 1.5"),
        ('{"prompt": "x", "height": 33}', "line 1: height is 33 pixels"),
        ('{"prompt": "x", "height": 32, "aspect": "1:1"}', "line 1: aspect and height are given"),
        (
            f'{{"prompt": "x", "seconds": {10**400}}}',
            r"line 1: The length asked for is 10+\.\.\. s",
        ),
        ('{"prompt": "x", "seed": -1}', "line 1: seed is -1"),
        ("\n \n", "has no prompts"),
        ('{"a": 1}\n' * 9, r"9 of the 9 prompts[\s\S]*line 5[\s\S]*and 4 more"),
    ],
)
def test_a_bad_line_is_named_before_any_work(
    run: Any, tmp_path: Path, prompts: Path, text: str, match: str
) -> None:
    prompts.write_text(text)
    result = run()
    assert result.exit_code == 2
    assert re.search(match, result.stderr), result.stderr
    assert not (tmp_path / "clips").exists()


def test_options_of_one_clip_are_refused(run: Any, tmp_path: Path) -> None:
    result = run("--save-latents", str(tmp_path / "x.npy"), "--contact-sheet", "x.png")
    assert result.exit_code == 2
    assert "--save-latents and --contact-sheet and --prompts are given" in result.stderr


def test_the_output_is_a_folder(run: Any, tmp_path: Path) -> None:
    result = run(folder="clip.mp4")
    assert result.exit_code == 2
    assert "is the name of a clip" in result.stderr
    (tmp_path / "taken").touch()
    assert run(folder="taken").exit_code == 2


def test_the_default_folder_is_not_the_list(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts").write_text("a\n")
    result = CliRunner().invoke(cli, ["generate", str(small_bundle), "--prompts", "prompts"])
    assert result.exit_code == 2
    assert "--prompts prompts would be that file.\nExpected: --output" in result.stderr


def test_a_dry_run_makes_nothing(run: Any, tmp_path: Path) -> None:
    result = run("--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)
    assert not (tmp_path / "clips").exists()


def test_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes('\ufeffone\r\n{"prompt": "two\\u2028", "aspect": "1:1"}\r\n'.encode())
    assert prompt_list.read(path) == (
        prompt_list.Line(1, {"prompt": "one"}, Wanted()),
        prompt_list.Line(2, {"prompt": "two\u2028"}, Wanted("1:1")),
    )
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        prompt_list.read(path)


def test_results_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"output": 1}\n')
    with pytest.raises(UsageError, match=r"results\.jsonl, line 1, is not what became of a clip"):
        list_results.Results(tmp_path)


def test_results_are_read_line_by_line(
    run: Any, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may have more bytes than a document; a line of it may not."""
    prompts.write_text("a\n")
    assert run().exit_code == 0
    folder = tmp_path / "clips"
    lines = (folder / list_results.NAME).read_bytes().splitlines()
    monkeypatch.setattr(list_results, "MAX_LINE_BYTES", max(map(len, lines)) + 1)
    assert list(list_results.Results(folder).latest) == ["0001-a-0.mp4"]
    monkeypatch.setattr(list_results, "MAX_LINE_BYTES", len(lines[0]))
    with pytest.raises(UsageError, match=r"line 1, is not .* more than [\d,]+ bytes[\s\S]*To fix"):
        list_results.Results(folder)
