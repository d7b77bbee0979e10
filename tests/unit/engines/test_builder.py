"""Building the plans of a bundle: what is listed, what is left alone, what a failure leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from sana_rt import files
from sana_rt.benchmarks import processes
from sana_rt.benchmarks.processes import Call
from sana_rt.bundle import Bundle
from sana_rt.engines import builder, freshness, plan_table, profiles
from sana_rt.engines.builder import BuildProgress
from sana_rt.engines.freshness import Settings
from sana_rt.engines.trt_api import TensorRT
from sana_rt.engines.workloads import Workload
from sana_rt.errors import (
    BuildError,
    BundleFileError,
    DiskFullError,
    LockedError,
    PlanVersionError,
    ProfileError,
    TargetError,
    UnsupportedNodeError,
)
from sana_rt.manifest import DimRange, Plan

from .conftest import MODEL, BundleOf

WORKLOAD_720P = Workload(num_frames=81, height=704, width=1280)


def _silent(_: BuildProgress) -> None:
    """Report nothing."""


def _plans(root: Path) -> dict[str, Plan]:
    return Bundle.open(root).manifest.variant("v").plans.get("sm120", {})


def test_lists_every_plan_with_what_it_was_built_from(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    built = builder.build_variant(linear_bundle.root, settings, rtx, _silent)
    plans = _plans(linear_bundle.root)
    assert list(plans) == list(built) == ["first", "second", "third"]
    bundle = Bundle.open(linear_bundle.root)
    for name, plan in plans.items():
        for path in (plan.path, plan.log):
            bundle.check_hash(bundle.manifest.file(path))
        graph = bundle.manifest.variant("v").graphs[name]
        assert plan.built_from.graph == bundle.manifest.file(graph.path).sha256
        assert plan.built_from.weights == (bundle.manifest.file(graph.weights[0]).sha256,)
        assert (plan.flavour, plan.flavour_version) == ("rtx", rtx.version)
        assert plan.compute_capability == "12.0"
        assert plan.user_allocation
        assert plan.profile == {"batch": DimRange(2, 2, 2), "frames": DimRange(21, 21, 21)}
        table = plan_table.read(bundle.path(plan.log))
        assert (table.activation_bytes, table.weight_bytes) == (
            plan.activation_bytes,
            plan.weight_bytes,
        )
        assert plan.weight_bytes >= 64 * 64 * 4


def test_reports_progress(linear_bundle: Bundle, settings: Settings, rtx: TensorRT) -> None:
    seen: list[BuildProgress] = []
    builder.build_variant(linear_bundle.root, settings, rtx, seen.append)
    assert {(state.graph, state.index, state.total) for state in seen} == {
        ("first", 0, 3),
        ("second", 1, 3),
        ("third", 2, 3),
    }
    assert all(state.phase for state in seen)


def test_builds_only_what_is_not_current(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    root = linear_bundle.root
    builder.build_variant(root, settings, rtx, _silent)
    assert builder.build_variant(root, settings, rtx, _silent) == {}
    (root / _plans(root)["second"].path).write_bytes(b"damaged")
    assert list(builder.build_variant(root, settings, rtx, _silent)) == ["second"]
    assert all(status.is_current for status in freshness.survey(Bundle.open(root), settings))


def test_another_workload_replaces_the_plans(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    root = linear_bundle.root
    builder.build_variant(root, settings, rtx, _silent)
    ranged = replace(settings, workload=Workload(DimRange(5, 81, 161), 480, 832, batch=1))
    assert len(builder.build_variant(root, ranged, rtx, _silent)) == 3
    assert _plans(root)["first"].profile == {
        "batch": DimRange.fixed(1),
        "frames": DimRange(2, 21, 41),
    }


def test_targets_stand_side_by_side(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    root = linear_bundle.root
    builder.build_variant(root, settings, rtx, _silent)
    for name in ("sm89", "sm86"):
        builder.build_variant(root, replace(settings, target=rtx.target(name)), rtx, _silent)
    plans = Bundle.open(root).manifest.variant("v").plans
    assert {target: plans[target]["first"].compute_capability for target in plans} == {
        "sm120": "12.0",
        "sm89": "8.9",
        "sm86": "8.6",
    }


def test_refuses_types_that_the_card_has_not(
    bundle_of: BundleOf, graphs: ModuleType, settings: Settings, rtx: TensorRT
) -> None:
    bundle = bundle_of({"first": graphs.linear(), "second": graphs.nvfp4_chain()})
    for name, missing in (("sm89", "float4_e2m1"), ("sm86", "float8_e4m3fn")):
        target = rtx.target(name)
        with pytest.raises(TargetError, match=f"second .*{missing}.* {name} does not"):
            builder.build_variant(bundle.root, replace(settings, target=target), rtx, _silent)
    assert Bundle.open(bundle.root).manifest.variant("v").plans == {}, "checked before building"


def test_names_the_node_and_the_module_that_cannot_be_imported(
    bundle_of: BundleOf, graphs: ModuleType, settings: Settings, rtx: TensorRT
) -> None:
    bundle = bundle_of({"first": graphs.unsupported()})
    with pytest.raises(UnsupportedNodeError) as caught:
        builder.build_variant(bundle.root, settings, rtx, _silent)
    for part in ("first.onnx", "'attn1.to_q/Det_0'", "Det", "the module 'attn1.to_q'"):
        assert part in str(caught.value)
    assert "attn1.to_q/Det_0" in (bundle.root / "v/sm120/first.log").read_text()


def test_quotes_tensorrt_and_keeps_the_log_when_it_refuses(
    linear_bundle: Bundle, rtx: TensorRT, tmp_path: Path
) -> None:
    graph = linear_bundle.path("v/first.onnx")
    wrong = builder.BuildRequest(graph, rtx.target("sm120"), {"timestep": ((1, 2, 63),) * 3})
    with pytest.raises(BuildError, match="profile has min=63") as caught:
        builder.build_plan(wrong, tmp_path / "plan.plan", rtx, lambda _: None)
    assert "driver" not in str(caught.value), "a build needs none"
    assert str(tmp_path / "plan.log") in str(caught.value)
    assert (tmp_path / "plan.log").is_file()
    assert not (tmp_path / "plan.plan").exists()


def test_a_plan_without_its_log_is_none(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: bytes) -> None:
        raise DiskFullError(f"No room left while writing {path}.")

    monkeypatch.setattr(builder, "write_bytes", full)
    with pytest.raises(DiskFullError, match=r"first\.log"):
        builder.build_variant(linear_bundle.root, settings, rtx, _silent)
    assert list(linear_bundle.root.rglob("*.plan")) == []


def test_a_full_disk_keeps_what_is_finished(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = TensorRT.build
    requests = []

    def build_or_fill(self: TensorRT, request, write, log, progress):  # type: ignore[no-untyped-def]
        def full(data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        requests.append(request)
        build(self, request, full if len(requests) == 2 else write, log, progress)

    monkeypatch.setattr(TensorRT, "build", build_or_fill)
    with pytest.raises(DiskFullError, match=r"second\.plan"):
        builder.build_variant(linear_bundle.root, settings, rtx, _silent)
    assert list(_plans(linear_bundle.root)) == ["first"]
    assert list(builder.build_variant(linear_bundle.root, settings, rtx, _silent)) == [
        "second",
        "third",
    ]


def test_a_cancelled_build_stops_and_goes_on_later(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    def cancel(state: BuildProgress) -> None:
        if state.graph == "second":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder.build_variant(linear_bundle.root, settings, rtx, cancel)
    assert list(_plans(linear_bundle.root)) == ["first"]
    assert len(builder.build_variant(linear_bundle.root, settings, rtx, _silent)) == 2


# Builds, and stops for good in the middle of the second plan.
BUILD_AND_WAIT = """
import sys
from pathlib import Path
from sana_rt.engines import builder, workloads
from sana_rt.engines.freshness import Settings
from sana_rt.engines.trt_api import TensorRT
from sana_rt.model_spec import PRESETS

def wait(state):
    if state.graph == "second":
        print("waiting", flush=True)
        sys.stdin.read()

rtx = TensorRT("rtx")
workload = workloads.for_model(PRESETS["sana-video-2b-480p"])
settings = Settings("v", rtx.target("sm120"), workload, "rtx", rtx.version)
builder.build_variant(Path(sys.argv[1]), settings, rtx, wait)
"""


def test_a_killed_build_goes_on(linear_bundle: Bundle, settings: Settings, rtx: TensorRT) -> None:
    root = linear_bundle.root
    command = [sys.executable, "-c", BUILD_AND_WAIT, str(root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        with pytest.raises(LockedError):
            builder.build_variant(root, settings, rtx, _silent)
        process.kill()
    assert list(_plans(root)) == ["first"], "the bundle opens and lists what is whole"
    assert list(builder.build_variant(root, settings, rtx, _silent)) == ["second", "third"]
    assert not list(root.rglob(f"*{files.PARTIAL_SUFFIX}"))
    whole = Bundle.open(root)
    for file in whole.manifest.files:
        whole.check_hash(file)


def test_does_not_build_from_a_graph_that_is_not_the_listed_one(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    path = linear_bundle.path("v/second.onnx.data")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BundleFileError, match=r"second\.onnx\.data has SHA-256"):
        builder.build_variant(linear_bundle.root, settings, rtx, _silent)


@pytest.mark.parametrize("width", [64, 4096])
def test_the_memory_predicted_is_enough_and_not_far_too_much(
    bundle_of: BundleOf, graphs: ModuleType, width: int
) -> None:
    """With weights of 16 KiB and of 64 MiB, of which a build takes three copies."""
    bundle = bundle_of({"first": graphs.linear(width)})
    build = ["build", str(bundle.root), "--variant", "v", "--target", "sm120"]
    call = Call("sana_rt.cli:cli", {"args": build, "standalone_mode": False}, threads=1)
    peak = processes.known(call.run().peak_bytes)
    assert peak <= builder.predicted_peak_bytes(bundle, "v") <= 2 * peak


def test_a_plan_refuses_what_is_outside_its_profile(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    builder.build_variant(linear_bundle.root, settings, rtx, _silent)
    plan = _plans(linear_bundle.root)["first"]
    graph = linear_bundle.manifest.variant("v").graphs["first"]
    same = profiles.profile("first", graph, MODEL, settings.workload)
    plan.check_holds("first", same, "")
    wanted = {**same, "frames": DimRange(1, 21, 41)}
    with pytest.raises(ProfileError, match=r"frames 1\.\.41.\n.*frames 21, what") as caught:
        plan.check_holds("first", wanted, "rebuild: sana-rt build")
    assert "sana-rt build" in str(caught.value)


def test_a_plan_refuses_another_version(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    builder.build_variant(linear_bundle.root, settings, rtx, _silent)
    plan = _plans(linear_bundle.root)["first"]
    plan.check_version("first", rtx.version, "")
    with pytest.raises(PlanVersionError) as caught:
        plan.check_version("first", "9.9.9", "sana-rt build out/bundle")
    for part in (rtx.version, "9.9.9", "sana-rt build out/bundle"):
        assert part in str(caught.value)


def test_a_plan_of_another_version_is_built_again(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    builder.build_variant(linear_bundle.root, settings, rtx, _silent)
    newer = replace(settings, flavour_version="9.9.9")
    statuses = freshness.survey(Bundle.open(linear_bundle.root), newer)
    assert {status.reasons for status in statuses} == {(f"version was {rtx.version}, is 9.9.9",)}


def test_options_cannot_be_changed_by_accident(settings: Settings) -> None:
    assert settings.options == {"aux_streams": "0", "tf32": "false"}
