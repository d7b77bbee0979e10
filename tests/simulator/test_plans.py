"""Plans that do not play here, each with its own error; and what is kept of those that do."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.simulator.simulated_cuda import Device

from sana_rt.bundle import Bundle
from sana_rt.errors import (
    BackendError,
    BundleFileError,
    DeviceMemoryError,
    PlanCardError,
    PlanDriverError,
    PlanFormatError,
    PlanVersionError,
    SanaRTError,
)
from sana_rt.manifest import DimRange, Plan
from sana_rt.runtime import backends
from sana_rt.runtime.backends import plan_offers
from sana_rt.runtime.backends.base import DEFAULT_OPTIONS, Artifact
from sana_rt.runtime.backends.plan_file import SlowPlanWarning
from sana_rt.runtime.backends.tensorrt import TensorRT


@pytest.fixture
def backend() -> Any:
    opened = TensorRT(DEFAULT_OPTIONS)
    yield opened
    opened.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sana-rt" / "kernels"


def refuse(reason: str) -> None:
    """Let every plan be refused for a reason of TensorRT's."""
    from tensorrt_rtx import EngineInvalidityDiagnostics, _environment

    _environment.refusals.add(EngineInvalidityDiagnostics[reason])


def compilations() -> list[str]:
    """The graphs that contexts compiled kernels for."""
    from tensorrt_rtx import _environment

    return _environment.compiled


def solver(plans: Path, **changes: Any) -> Artifact:
    bundle = Bundle.open(plans)
    plan = msgspec.structs.replace(bundle.manifest.variants["fp32"].plans["sm120"]["solver"])
    file = bundle.manifest.file(plan.path)
    given = {"name": "solver", "entry": plan, "path": bundle.path(plan.path), "variant": "fp32"}
    return Artifact(**given | {"sha256": file.sha256} | changes)


@pytest.mark.parametrize(
    ("reason", "error", "words"),
    [
        ("VERSION_MISMATCH", PlanVersionError, r"version [\d.]+ of 'rtx'; version [\d.]+ is run"),
        ("UNSUPPORTED_CC", PlanCardError, r"capability 12\.0; Simulated card .* has 12\.0"),
        ("OLD_CUDA_DRIVER", PlanDriverError, r"newer driver than this one, .* CUDA 13\.1"),
        ("OLD_CUDA_RUNTIME", PlanDriverError, r"newer CUDA than that of TensorRT-RTX [\d.]+"),
        ("INSUFFICIENT_GPU_MEMORY", DeviceMemoryError, r"[\d,]+ bytes for weights"),
        ("MALFORMED_ENGINE", PlanFormatError, r"solver\.plan is not a plan"),
        ("CUDA_ERROR", BackendError, "cannot use CUDA"),
    ],
)
def test_each_reason_has_its_error(
    plans: Path, backend: TensorRT, reason: str, error: type[SanaRTError], words: str
) -> None:
    refuse(reason)
    with pytest.raises(error, match=words) as caught:
        backend.open(solver(plans))
    assert caught.value.remedy
    assert type(caught.value) is error


def test_a_plan_that_another_version_built_names_the_command(
    plans: Path, backend: TensorRT
) -> None:
    refuse("VERSION_MISMATCH")
    with pytest.raises(PlanVersionError, match=r"sana-rt build BUNDLE --variant fp32"):
        backend.open(solver(plans))


def test_a_plan_for_another_kind_of_card_is_played_with_a_warning(
    plans: Path, backend: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sana_rt.runtime.backends.trt_api import Library, Validity

    monkeypatch.setattr(Library, "validity", lambda *_: Validity(runs=True, is_slow=True))
    with pytest.warns(SlowPlanWarning, match=r"built for 12\.0 and runs more slowly"):
        backend.open(solver(plans))


def test_only_the_listed_file_is_loaded(plans: Path, backend: TensorRT, tmp_path: Path) -> None:
    """One changed bit, or no hash at all: nothing of it is given to TensorRT."""
    data = bytearray(solver(plans).path.read_bytes())
    data[len(data) // 2] ^= 1
    changed = tmp_path / "solver.plan"
    changed.write_bytes(data)
    for artifact in (solver(plans, path=changed), solver(plans, sha256="")):
        with pytest.raises(BundleFileError, match=r"SHA-256 [0-9a-f]{64}"):
            backend.open(artifact)
    assert compilations() == []


def test_a_plan_of_another_graph_is_refused(plans: Path, backend: TensorRT) -> None:
    entry = solver(plans).entry
    assert isinstance(entry, Plan)
    other = msgspec.structs.replace(entry, inputs=entry.inputs[1:])
    with pytest.raises(PlanFormatError, match=r"as the manifest says"):
        backend.open(solver(plans, entry=other))


# --- Offers ---


def variants(plans: Path, **changes: Any) -> Any:
    found = Bundle.open(plans).manifest.with_current_plans()
    target = {
        name: msgspec.structs.replace(plan, **changes)
        for name, plan in found["fp32"].plans["sm120"].items()
    }
    return {"fp32": msgspec.structs.replace(found["fp32"], plans={"sm120": target})}


def test_plans_for_the_card_are_preferred(plans: Path) -> None:
    backend, name = backends.select("auto", variants(plans), None)
    assert (backend.name, name) == ("tensorrt", "fp32")
    backend.close()


def test_plans_for_other_cards_are_not_offered(plans: Path, device: Device) -> None:
    device.reset(capability=(8, 9))
    (refusal,) = plan_offers.offers(variants(plans)).refusals.values()
    assert "its plans are for sm120, and Simulated card" in refusal
    assert "has compute capability 8.9" in refusal


def test_plans_of_another_version_are_not_offered(plans: Path) -> None:
    (refusal,) = plan_offers.offers(variants(plans, flavour_version="1.6.0.1")).refusals.values()
    assert "was built by version 1.6.0.1 of 'rtx'; version 1.7" in refusal
    assert "sana-rt build BUNDLE --variant fp32" in refusal


def test_every_graph_needs_a_plan_of_what_it_is_today(plans: Path) -> None:
    bundle = Bundle.open(plans)
    old = msgspec.structs.replace(bundle.manifest.built_from("fp32", "solver"), graph="0" * 64)
    variant = bundle.manifest.variants["fp32"]
    found = dict(variant.plans["sm120"])
    found["solver"] = msgspec.structs.replace(found["solver"], built_from=old)
    del found["block_03"]
    changed = msgspec.structs.replace(variant, plans={"sm120": found})
    manifest = msgspec.structs.replace(bundle.manifest, variants={"fp32": changed})
    (refusal,) = plan_offers.offers(manifest.with_current_plans()).refusals.values()
    assert "it has no current plans of block_03, solver for Simulated card" in refusal


def test_without_plans_the_card_is_not_asked(plans: Path, device: Device) -> None:
    bare = {"fp32": msgspec.structs.replace(variants(plans)["fp32"], plans={})}
    device.mark()
    (refusal,) = plan_offers.offers(bare).refusals.values()
    assert refusal == "it has no plans (sana-rt build BUNDLE --variant fp32 makes them)"
    assert device.report().calls == {}


# --- Kernels that are kept ---


def compiled(plans: Path, caplog: pytest.LogCaptureFixture) -> tuple[list[str], str]:
    """What a session compiles to load a plan, and what it says."""
    compilations().clear()
    caplog.clear()
    backend = TensorRT(DEFAULT_OPTIONS)
    with caplog.at_level(logging.INFO, "sana_rt"):
        backend.open(solver(plans))
        backend.loaded()
        backend.close()
    return list(compilations()), caplog.text


def test_kernels_are_compiled_once(
    plans: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names, said = compiled(plans, caplog)
    assert names == ["solver"]
    assert "is not there yet" in said
    (kept,) = cache.iterdir()
    assert kept.name.startswith("rtx-1.7")
    assert kept.name.endswith("-12.0-13.1")
    before = kept.stat().st_mtime_ns
    names, said = compiled(plans, caplog)
    assert names == []
    assert f"come from {kept}" in said
    assert kept.stat().st_mtime_ns == before, "nothing new, so nothing is written"


def test_another_driver_compiles_anew(
    plans: Path, cache: Path, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    compiled(plans, caplog)
    device.reset(driver=14000)
    assert compiled(plans, caplog)[0] == ["solver"]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 1000])
def test_a_damaged_file_is_made_anew(
    plans: Path, cache: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    compiled(plans, caplog)
    (kept,) = cache.iterdir()
    kept.write_bytes(content)
    names, said = compiled(plans, caplog)
    assert names == ["solver"]
    assert "TensorRT compiles kernels" in said
    assert compiled(plans, caplog)[0] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_costs_a_note(
    plans: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    assert "are not kept for the next start" in compiled(plans, caplog)[1]


def test_a_folder_that_is_a_file_costs_a_note(
    plans: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"")
    names, said = compiled(plans, caplog)
    assert names == ["solver"]
    assert "are not kept for the next start" in said


def test_a_plan_knows_the_sizes_that_it_is_for(plans: Path) -> None:
    plan = solver(plans).entry
    assert isinstance(plan, Plan)
    assert plan.profile["frames"] == DimRange.fixed(5)
