"""``sana-rt doctor BUNDLE``: which backend would play what, and why not the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from sana_rt.bundle import Bundle
from sana_rt.cli import bundle_offers
from sana_rt.errors import BackendError, BundleFileError, ManifestMissingError
from sana_rt.runtime.backends import survey
from sana_rt.runtime.backends.base import Artifact
from sana_rt.runtime.backends.onnxruntime import OnnxRuntime


def test_every_variant_on_every_backend(block_bundle: Path) -> None:
    """Without a GPU, float32 is played on the CPU; each of the others has its reason."""
    found = {
        (each.backend, each.variant): each.refusal for each in bundle_offers.examine(block_bundle)
    }
    assert set(found) == {
        (backend, variant) for backend in survey.BACKENDS for variant in ("fp32", "bf16")
    }
    assert [key for key, refusal in found.items() if not refusal] == [("onnxruntime", "fp32")]
    assert "in bfloat16" in found["onnxruntime", "bf16"]
    assert "no plans" in found["tensorrt", "bf16"]


def test_a_backend_that_cannot_be_opened_refuses_everything(
    block_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise BackendError("it is broken.", remedy="mend it.")

    monkeypatch.setattr(OnnxRuntime, "__init__", broken)
    refusals = survey.offers("onnxruntime", Bundle.open(block_bundle)).refusals
    assert refusals["fp32"] == "it is broken. To fix: mend it"


def test_what_the_file_says_counts(block_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_: object, artifact: Artifact) -> None:
        raise BundleFileError(f"{artifact.name} is not what it should be.")

    monkeypatch.setattr(OnnxRuntime, "check", check)
    found = survey.offers("onnxruntime", Bundle.open(block_bundle))
    assert found.playable == ()
    assert found.refusals["fp32"] == "block_00 is not what it should be"


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestMissingError):
        bundle_offers.examine(tmp_path)
