"""``sana-rt`` as installed from the wheel without extras."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

import sana_rt
from sana_rt import bundle as bundles
from sana_rt import manifest as manifests
from sana_rt.cli import COMMANDS

from .conftest import ROOT, Environment


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    corpus = ROOT / "tests/data/manifests/valid"
    manifest = manifests.decode((corpus / "minimal.json").read_bytes())
    for file in manifest.files:
        path = tmp_path / file.path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(file.bytes))
    files = bundles.describe(tmp_path, [tmp_path / file.path for file in manifest.files])
    bundles.save(tmp_path, msgspec.structs.replace(manifest, files=files))
    return tmp_path


def test_the_script_and_the_module_are_the_same_command(bare: Environment) -> None:
    shown = bare.run("sana-rt", "--version").stdout
    assert shown == f"sana-rt, version {sana_rt.__version__}\n"
    assert bare.run("python", "-m", "sana_rt", "--version").stdout == shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_needs_no_extra(bare: Environment, name: str) -> None:
    shown = bare.run("sana-rt", name, "--help").stdout
    assert shown.startswith(f"Usage: sana-rt {name}")
    assert f"sana-rt {name}" in shown.split("\n", 1)[1], "an example is missing"


def test_inspect_needs_no_extra(bare: Environment, small_bundle: Path) -> None:
    assert "timestep" in bare.run("sana-rt", "inspect", "--all", small_bundle).stdout
    shown = json.loads(bare.run("sana-rt", "inspect", "--json", small_bundle).stdout)
    assert (shown["damaged"], shown["wrong"]) == ([], {})


def test_doctor_says_what_to_install(bare: Environment) -> None:
    report = json.loads(bare.run("sana-rt", "doctor", "--json").stdout)
    commands = {extra["name"]: extra["install"] for extra in report["extras"]}
    assert commands == {name: f'pip install "sana-rt[{name}]"' for name in commands}
    assert report["onnxruntime_providers"] == []


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("generate", "{bundle}", "a red circle", "-o", "{bundle}/circle.mp4"), "cpu"),
        (("export", "{bundle}", "{bundle}/out"), "build"),
        (("verify", "{bundle}", "{bundle}"), "build"),
        (("demo", "--output", "{bundle}/out"), "build,cpu"),
    ],
)
def test_a_command_names_the_extra_it_needs(
    bare: Environment, bundle: Path, arguments: tuple[str, ...], extra: str
) -> None:
    filled = [argument.format(bundle=bundle) for argument in arguments]
    failed = bare.run("sana-rt", *filled, check=False)
    assert failed.returncode == 1
    assert f'pip install "sana-rt[{extra}]"' in failed.stderr
    assert "Traceback" not in failed.stderr
