"""What a newcomer runs, in any order: commands re-use what is current and meet in one bundle."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.manifest import Source

PROMPT = "a red circle moving right"
SMALL = ("--num-frames", "5", "--num-inference-steps", "2", "--threads", "1")


def _run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def folder(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo that was run before: its bundle is what `sana-rt demo` exports."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_bundle, "out/demo/bundle")
    return Path("out/demo")


def _demo(folder: Path) -> None:
    shown = json.loads(_run("demo", "--output", folder, PROMPT, "--json", "--quiet").stdout)
    assert shown["export"]["exported"] is False
    assert shown["generate"]["output"] == str(folder / "video.mp4")
    assert (folder / "contact_sheet.png").is_file()


def _generate(folder: Path) -> None:
    _run("generate", folder / "bundle", PROMPT, "-o", "video.mp4", "--overwrite", *SMALL)


def _quantize(folder: Path) -> None:
    _run("quantize", folder / "bundle", "--recipe", "max")
    Path("emulated.mp4").unlink(missing_ok=True)
    emulation = ("--variant", "nvfp4-max-emulation", "-o", "emulated.mp4")
    _run("generate", folder / "bundle", PROMPT, *emulation, *SMALL)


def _export(folder: Path, checkpoint: Path) -> None:
    assert "is current" in _run("export", checkpoint, folder / "bundle").stderr


def test_commands_work_in_any_order_and_twice(folder: Path, small_checkpoint: Path) -> None:
    steps: list[Callable[[], None]] = [
        lambda: _demo(folder),
        lambda: _generate(folder),
        lambda: _export(folder, small_checkpoint),
    ]
    manifest = folder / "bundle/manifest.json"
    before = manifest.read_bytes()
    for order in itertools.permutations(steps):
        for step in order:
            step()
    assert manifest.read_bytes() == before
    _quantize(folder)
    before = manifest.read_bytes()
    for step in (*steps, lambda: _quantize(folder)):
        step()
    assert manifest.read_bytes() == before
    assert list(Bundle.open(folder / "bundle").manifest.variants) == ["fp32", "nvfp4-max-emulation"]


def test_the_demo_plays_a_bundle_of_another_checkpoint_as_it_is(
    folder: Path, small_checkpoint: Path
) -> None:
    opened = Bundle.open(folder / "bundle").manifest
    other = Source("trained", "diffusers", "1" * 64)
    variants = {"fp32": msgspec.structs.replace(opened.variant("fp32"), source=other)}
    bundles.save(folder / "bundle", msgspec.structs.replace(opened, variants=variants))
    before = (folder / "bundle/manifest.json").read_bytes()
    result = _run("demo", "--output", folder, PROMPT, "--json")
    assert json.loads(result.stdout)["export"] is None
    assert "is of trained, and is played as it is" in " ".join(result.stderr.split())
    assert (folder / "bundle/manifest.json").read_bytes() == before
    refused = CliRunner().invoke(
        cli, ["demo", "--output", str(folder), "--checkpoint", str(small_checkpoint)]
    )
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert (folder / "bundle/manifest.json").read_bytes() == before
