"""`--aspect`, `--size` and `--seconds`: what they become, and that it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sana_rt.cli import cli
from sana_rt.cli.wanted_size import Wanted
from sana_rt.errors import UsageError
from sana_rt.model_spec import PRESETS

MODEL = PRESETS["sana-video-2b-480p"]


def test_they_take_the_place_of_a_configuration_file(capsys: pytest.CaptureFixture[str]) -> None:
    config = {"height": 16, "width": 16, "num_frames": 5, "prompt": "x"}
    assert Wanted("9:16").resolve(MODEL, config, {}) == {**config, "height": 832, "width": 480}
    assert "9:16 is 480x832, the nearest size" in capsys.readouterr().err
    assert Wanted(size="900x500", seconds=5).resolve(MODEL, config, {}) == {
        "height": 496,
        "width": 896,
        "prompt": "x",
    }
    assert "900x500 becomes 896x496" in capsys.readouterr().err
    Wanted(size="99999x500").resolve(MODEL, {}, {})
    assert "becomes 16384x496" in (said := capsys.readouterr().err)
    assert "multiples of 16 and 16, from 16x16 to 16384x16384" in said
    assert Wanted(size="832x480").resolve(MODEL, {}, {}) == {"height": 480, "width": 832}
    assert capsys.readouterr().err == ""
    assert Wanted().resolve(MODEL, config, {}) == config


@pytest.mark.parametrize(
    ("wanted", "line", "named"),
    [
        (Wanted("1:1", "832x480"), {}, "--aspect and --size"),
        (Wanted("1:1"), {"height": 480}, "--aspect and --height"),
        (Wanted(size="832x480"), {"height": 480, "width": 832}, "--size and --height and --width"),
    ],
)
def test_the_size_is_said_once(wanted: Wanted, line: dict[str, int], named: str) -> None:
    with pytest.raises(UsageError, match=f"{named} are given"):
        wanted.resolve(MODEL, line, line)


def test_a_command_takes_them(small_bundle: Path) -> None:
    run = ["generate", str(small_bundle), "x", "--dry-run", "--json"]
    result = CliRunner().invoke(cli, [*run, "--aspect", "16:9", "--seconds", "1"])
    assert result.exit_code == 0, result.output
    assert "16:9 is 80x48, the nearest size of sana-video-small" in result.stderr
    assert "1 s become 9 frames, 1.125 s" in result.stderr
    both = CliRunner().invoke(cli, [*run, "--num-frames", "5", "--seconds", "1"])
    assert both.exit_code == 2
    assert "Both seconds and num_frames are given" in both.stderr


def test_inspect_lists_the_sizes(small_bundle: Path) -> None:
    run = ["inspect", str(small_bundle), "--skip-hashes"]
    short, long = (CliRunner().invoke(cli, [*run, *more]).output for more in ([], ["--all"]))
    assert "16:9 80x48" in " ".join(short.split())
    assert "Sizes of sana-video-small" in long
    assert any("80x48" in line and "16:9" in line for line in long.splitlines())
