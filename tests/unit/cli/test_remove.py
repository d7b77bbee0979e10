"""``sana-rt remove``: what leaves a bundle, and what stays."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from sana_rt import bundle as bundles
from sana_rt import manifest as manifests
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.files import lock

CORPUS = Path(__file__).parents[2] / "data/manifests/valid"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two variants that share their graph's files; one of them has plans for two targets."""
    manifest = manifests.decode((CORPUS / "plans.json").read_bytes())
    variant = manifest.variants["fp32"]
    ((target, plans),) = variant.plans.items()
    moved = {
        name: msgspec.structs.replace(plan, path=f"other/{name}.plan", log=f"other/{name}.log")
        for name, plan in plans.items()
    }
    files = [*(file.path for file in manifest.files), *(p.path for p in moved.values())]
    for path in [*files, *(plan.log for plan in moved.values())]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    first = msgspec.structs.replace(variant, plans={target: plans, "sm89": moved})
    second = msgspec.structs.replace(variant, plans={})
    after = msgspec.structs.replace(manifest, variants={"fp32": first, "second": second})
    listed = bundles.describe(tmp_path, [tmp_path / path for path in after.paths()])
    bundles.save(tmp_path, msgspec.structs.replace(after, files=listed))
    return tmp_path


def _remove(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["remove", *map(str, arguments)])


def _files(root: Path) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.name not in {".lock", "manifest.json"}
    }


def _is_whole(root: Path) -> bool:
    """Whether the listed files, and no others, are there with their hashes."""
    bundle = Bundle.open(root)
    for file in bundle.manifest.files:
        bundle.check_hash(file)
    return _files(root) == {file.path for file in bundle.manifest.files}


def test_a_variant_goes_with_what_only_it_uses(root: Path) -> None:
    before = _files(root)
    result = _remove(root, "--variant", "fp32", "--json")
    assert result.exit_code == 0, result.output
    removed = json.loads(result.stdout)
    assert set(removed["removed"]) == before - _files(root)
    assert all(path.endswith((".plan", ".log")) for path in removed["removed"])
    assert removed["bytes"] == sum(map(len, removed["removed"]))
    assert set(Bundle.read(root).manifest.variants) == {"second"}
    assert _is_whole(root)
    assert not (root / "other").exists()


def test_plans_go_for_one_target_or_for_all(root: Path) -> None:
    result = _remove(root, "--plans", "--target", "sm89")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Removed 2 files")
    assert "sm89" not in Bundle.read(root).manifest.variants["fp32"].plans
    assert _is_whole(root)
    assert _remove(root, "--plans", "--variant", "fp32").exit_code == 0
    assert not Bundle.read(root).manifest.variants["fp32"].plans
    assert _is_whole(root)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ((), 2, "Nothing would be removed"),
        (("--variant", "nope"), 1, "no variant 'nope'"),
        (("--target", "sm89"), 2, "--target is given without --plans"),
        (("--plans", "--target", "sm80"), 2, "has no such plans"),
        (("--plans", "--variant", "second"), 2, "has no such plans"),
    ],
)
def test_what_cannot_be_removed_is_said(
    root: Path, arguments: tuple[str, ...], exit_code: int, words: str
) -> None:
    before = (root / "manifest.json").read_bytes()
    result = _remove(root, *arguments)
    assert result.exit_code == exit_code, result.output
    assert words in result.stderr
    assert (root / "manifest.json").read_bytes() == before


def test_the_last_variant_stays(root: Path) -> None:
    assert _remove(root, "--variant", "fp32").exit_code == 0
    result = _remove(root, "--variant", "second")
    assert result.exit_code == 2
    assert "is the only variant" in result.stderr
    assert _is_whole(root)


def test_a_bundle_that_is_being_written_is_left_alone(root: Path) -> None:
    with lock(root):
        result = _remove(root, "--plans")
    assert result.exit_code == 1
    assert "Another process" in result.stderr
