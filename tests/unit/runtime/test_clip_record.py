"""What a clip says of itself: a command that is typed as it stands, whoever wrote it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from sana_rt.cli import cli
from sana_rt.cli.list_results import settings
from sana_rt.errors import RequestError
from sana_rt.export.seeded import SMALL
from sana_rt.manifest import Calibration, Quantization, Source
from sana_rt.runtime import clip_record
from sana_rt.runtime.clip_record import ClipRecord
from sana_rt.runtime.images import write_png
from sana_rt.runtime.prompt_schedule import TimedPrompt
from sana_rt.runtime.request import for_model

RECORD = ClipRecord(
    command="stream",
    model="shapes",
    source=Source("checkpoints", "diffusers", "0" * 64),
    variant="fp32",
    request={
        "prompt": "it's a $(red) circle",
        "height": 64,
        "motion_score": None,
        "lowercase": True,
        "timesteps": (1000.0, 727.5),
        "seed": 2**64 - 1,
    },
    prompts=(TimedPrompt(2.5, "圆"),),
    recommit=True,
    fit="stretch",
    inputs={"--image": "1" * 64},
)
REQUEST = for_model(SMALL, {"prompt": "a circle"})
PICTURE = np.zeros((8, 8, 3), np.uint8)


def _picture(path: Path, comment: str) -> Path:
    write_png(path, PICTURE, {"comment": comment})
    return path


def test_the_command_has_every_option(tmp_path: Path) -> None:
    write_png(tmp_path / "p.png", PICTURE, RECORD.tags)
    read = clip_record.read(tmp_path / "p.png")
    assert read == RECORD
    assert shlex.split(read.command_line()) == [
        "sana-rt", "stream", "BUNDLE", "it's a $(red) circle", "--height", "64",
        "--no-motion-score", "--lowercase", "--timesteps", "1000,727.5",
        "--seed", "18446744073709551615", "--variant", "fp32", "--image", "FILE",
        "--fit", "stretch", "--prompt-at", "2.5", "圆", "--recommit",
    ]  # fmt: skip


def test_the_record_says_how_the_weights_were_quantized() -> None:
    """Made anew under the same name, a variant makes other clips."""
    records = []
    for recipe, calibration in (("1", "1"), ("2", "1"), ("1", "2")):
        of = Calibration("max", calibration * 64, "0" * 64, "0" * 64, 3)
        variant = SimpleNamespace(
            source=RECORD.source, quantization=Quantization("own", recipe * 64, "emulation", of)
        )
        session = SimpleNamespace(
            graphs=SimpleNamespace(variant="own"),
            bundle=SimpleNamespace(manifest=SimpleNamespace(variant={"own": variant}.get)),
            model=SimpleNamespace(name="shapes"),
            backend="onnxruntime",
        )
        records.append(
            clip_record.of(session, "generate", REQUEST, inputs={}, fit="crop")  # type: ignore[arg-type]
        )
    assert len({settings(each) for each in records}) == 3
    assert records[0].fit is None, "there is no image to fit"


def _spoilt() -> list[Any]:
    """The record with every one of its fields missing, and of other types."""
    whole = msgspec.to_builtins(RECORD)
    documents: list[Any] = [[], None, {}, {**whole, "extra": 1}]
    for name in whole:
        documents.append({key: value for key, value in whole.items() if key != name})
        values = ([], {}, None, -1, "\x1b[2J", [[[1]]], {"prompt": {}}, {"--x; y": "z"})
        documents += [{**whole, name: value} for value in values]
    return documents


def test_records_of_strangers_are_shown_or_refused(tmp_path: Path) -> None:
    shown = 0
    for document in _spoilt():
        path = _picture(tmp_path / "p.png", json.dumps(document))
        result = CliRunner().invoke(cli, ["inspect", str(path)])
        assert result.exit_code in {0, 1}, result.exception
        assert "\x1b" not in result.output
        shown += result.exit_code == 0
    assert shown > 5


@pytest.mark.parametrize("comment", ["a holiday", "[" * 100_000, '{"a": 1', ""])
def test_other_comments_are_not_records(tmp_path: Path, comment: str) -> None:
    with pytest.raises(RequestError, match=r"comment"):
        clip_record.read(_picture(tmp_path / "p.png", comment))
