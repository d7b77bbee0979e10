"""When a plan is current, and what is said when it is not."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import msgspec
import onnx

from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.engines import builder, freshness
from sana_rt.engines.freshness import Settings
from sana_rt.engines.trt_api import TensorRT
from sana_rt.engines.workloads import Workload
from sana_rt.manifest import DimRange, Quantization

NAME = "first"


def _reasons(bundle: Bundle, settings: Settings) -> tuple[str, ...]:
    """Those of one graph; the bundle is read again."""
    statuses = freshness.survey(Bundle.read(bundle.root), settings)
    return next(status.reasons for status in statuses if status.graph == NAME)


def _built(bundle: Bundle, settings: Settings, rtx: TensorRT) -> Bundle:
    builder.build_variant(bundle.root, settings, rtx, lambda _: None)
    return Bundle.read(bundle.root)


def test_every_part_of_the_key_is_a_reason_of_its_own(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    assert _reasons(linear_bundle, settings) == ("never built",)
    _built(linear_bundle, settings, rtx)
    assert _reasons(linear_bundle, settings) == ()
    for changed, reason in (
        (replace(settings, tf32=True), "options: tf32 was false, is true"),
        (replace(settings, flavour_version="1.8.0"), f"version was {rtx.version}, is 1.8.0"),
        (replace(settings, flavour="trt"), "flavour was rtx, is trt"),
        (
            replace(settings, workload=Workload(DimRange(5, 81, 81), 480, 832)),
            "profile: frames was 21, is 2..21",
        ),
    ):
        assert _reasons(linear_bundle, changed) == (reason,)
    assert _reasons(linear_bundle, replace(settings, target=rtx.target("sm89"))) == ("never built",)


def test_another_compute_capability_under_the_name_of_a_target(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    _built(linear_bundle, settings, rtx)
    moved = msgspec.structs.replace(settings.target, compute_capability="12.1")
    assert _reasons(linear_bundle, replace(settings, target=moved)) == (
        "compute capability was 12.0, is 12.1",
    )


def test_another_graph_other_weights_another_recipe(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT, graphs: ModuleType
) -> None:
    bundle = _built(linear_bundle, settings, rtx)
    weights = bundle.path(f"v/{NAME}.onnx.data")
    weights.write_bytes(bytes(weights.stat().st_size))
    _list_anew(bundle)
    assert _reasons(bundle, settings) == ("the weights changed",)

    model = graphs.linear()
    model.graph.node[1].op_type = "Sigmoid"
    onnx.save(
        model,
        bundle.path(f"v/{NAME}.onnx"),
        save_as_external_data=True,
        location=weights.name,
        size_threshold=0,
    )
    _list_anew(bundle)
    assert _reasons(bundle, settings)[0] == "the graph changed"

    manifest = Bundle.read(bundle.root).manifest
    made = Quantization("paper", "0" * 64, "device")
    variant = msgspec.structs.replace(manifest.variant("v"), quantization=made)
    bundles.save(bundle.root, msgspec.structs.replace(manifest, variants={"v": variant}))
    assert f"quantization was None, is {made}" in _reasons(bundle, settings)


def test_files_that_are_missing_cut_off_or_damaged(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    bundle = _built(linear_bundle, settings, rtx)
    plan = bundle.manifest.variant("v").plans["sm120"][NAME]
    path = bundle.root / plan.path
    whole = path.read_bytes()
    for content, reason in (
        (whole[:-1], f"has {len(whole) - 1:,} bytes"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "has SHA-256"),
    ):
        path.write_bytes(content)
        (found,) = _reasons(bundle, settings)
        assert found.startswith("damaged: ")
        assert reason in found
    path.unlink()
    (found,) = _reasons(bundle, settings)
    assert "is missing" in found


def test_an_export_of_the_same_graphs_keeps_the_plans(
    linear_bundle: Bundle, settings: Settings, rtx: TensorRT
) -> None:
    before = _built(linear_bundle, settings, rtx).manifest.variant("v")
    exported = msgspec.structs.replace(before, plans={}, description="exported again")
    kept = exported.keeping_plans(before)
    assert kept.plans == before.plans
    assert kept.description == "exported again"
    without = {name: graph for name, graph in exported.graphs.items() if name != NAME}
    fewer = msgspec.structs.replace(exported, graphs=without).keeping_plans(before)
    assert set(fewer.plans["sm120"]) == set(without)
    assert exported.keeping_plans(None) is exported


def _list_anew(bundle: Bundle) -> None:
    """Write the manifest again, with the hashes of the files as they are."""
    files = bundles.describe(
        bundle.root, [bundle.root / file.path for file in bundle.manifest.files]
    )
    bundles.save(bundle.root, msgspec.structs.replace(bundle.manifest, files=files))
