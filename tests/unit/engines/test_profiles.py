"""The range of every dimension of every graph."""

from __future__ import annotations

import pytest

from sana_rt import graph_names
from sana_rt.decode_window import DecodeWindow
from sana_rt.engines import profiles, workloads
from sana_rt.engines.workloads import Workload
from sana_rt.errors import ProfileError, RequestError
from sana_rt.export import autoencoders, graphs
from sana_rt.export.graphs import Sizes
from sana_rt.manifest import DimRange, Graph
from sana_rt.model_spec import PRESETS, ModelSpec

WAN = PRESETS["sana-video-2b-480p"]
LONG = PRESETS["longsana-2b-480p"]
FIXED = Workload(num_frames=81, height=480, width=832, length=512)


def _signatures(name: str) -> dict[str, Graph]:
    """The graphs of a model as the exporter defines them, without files."""
    model = PRESETS[name]
    defined = [graphs.text_encoder_graph(model, "float32")]
    defined += graphs.transformer_graphs(model, "float32")
    defined += graphs.vae_graphs(model.vae, "float32")
    return {each.name: Graph("", (), 23, each.inputs, each.outputs) for each in defined}


def _window(model: ModelSpec) -> DecodeWindow | None:
    autoencoder = autoencoders.find(model.vae)
    return None if autoencoder is None else autoencoder.window()


def _at(spans: dict[str, DimRange], end: str) -> dict[str, int]:
    return {name: getattr(span, end) for name, span in spans.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_every_graph_gets_the_dimensions_that_the_exporter_would_give_it(name: str) -> None:
    model = PRESETS[name]
    rows, columns = (30, 52) if model.vae.spatial_stride == 8 else (22, 40)
    latent = model.latent_frames(model.sampling.num_frames)
    workload = workloads.for_model(model)
    for graph_name, graph in _signatures(name).items():
        batch = 1 if graph_names.is_single(graph_name) or model.transformer.causal else 2
        frames = 10 if model.transformer.causal else latent
        expected = Sizes(batch, frames, rows, columns, length=512).dims(model)
        spans = profiles.profile(graph_name, graph, model, workload, _window(model))
        assert _at(spans, "opt") == {dim: expected[dim] for dim in spans}
        named = {dim for tensor in graph.inputs for dim in tensor.shape if isinstance(dim, str)}
        assert set(spans) == named


def test_a_window_sees_less_at_the_end_of_a_clip() -> None:
    model = PRESETS["sana-video-2b-720p"]
    decoder, workload = _signatures(model.name)["vae_decoder"], workloads.for_model(model)
    spans = profiles.profile("vae_decoder", decoder, model, workload, _window(model))
    assert spans["seen"] == DimRange(2, 3, 3)


def test_a_fixed_workload_fixes_every_dimension() -> None:
    for name, graph in _signatures("sana-video-2b-480p").items():
        spans = profiles.profile(name, graph, WAN, FIXED)
        assert all(span.is_fixed for span in spans.values())


def test_ranges_hold_at_both_ends() -> None:
    ranged = Workload(DimRange(1, 81, 161), DimRange(480, 480, 720), DimRange(832, 832, 1280))
    block = _signatures("sana-video-2b-480p")["block_00"]
    spans = profiles.profile("block_00", block, WAN, ranged)
    assert {name: (s.min, s.opt, s.max) for name, s in spans.items()} == {
        "batch": (2, 2, 2),
        "frames": (1, 21, 41),
        "rows": (30, 30, 45),
        "columns": (52, 52, 80),
    }


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (81, (10, 10, 11)),  # 21 latent frames: chunks of 11 and 10
        (961, (10, 10, 11)),  # one minute
        (77, (10, 10, 10)),  # 20: two equal chunks
        (73, (19, 19, 19)),  # 19: not cut
        (37, (10, 10, 10)),
        (DimRange(41, 961, 4093), (1, 10, 19)),  # a continuation may be cut anywhere
        (DimRange(5, 961, 4093), (1, 10, 19)),
        (DimRange(17, 33, 61), (1, 9, 16)),
    ],
)
def test_chunks_of_a_block_causal_model(
    frames: int | DimRange, expected: tuple[int, int, int]
) -> None:
    block = _signatures("longsana-2b-480p")["block_00"]
    workload = Workload(frames, 480, 832, batch=1)
    span = profiles.profile("block_00", block, LONG, workload)["frames"]
    assert (span.min, span.opt, span.max) == expected


def test_sizes_that_the_model_cannot_make_are_refused() -> None:
    graph = _signatures("sana-video-2b-480p")["patch_embed"]
    for wrong, what in (
        (Workload(82, 480, 832), "num_frames is 82"),
        (Workload(81, 481, 832), "height is 481"),
        (Workload(81, 480, DimRange(832, 832, 1000)), "width is 1000"),
    ):
        with pytest.raises(RequestError, match=what):
            profiles.profile("patch_embed", graph, WAN, wrong)


@pytest.mark.parametrize(
    ("wrong", "asked"),
    [
        (Workload(DimRange(81, 81, 4097), 480, 832), "1,025 latent frames"),
        (Workload(81, 16400, 832), "1,025 token rows"),
        (Workload(81, 480, DimRange(832, 832, 16400)), "1,025 token columns"),
    ],
)
def test_more_than_the_model_has_positions_for_is_refused(wrong: Workload, asked: str) -> None:
    for model in (WAN, LONG):
        with pytest.raises(RequestError, match=rf"clip has {asked}\.\n.* at most 1,024"):
            profiles.profile("block_00", _signatures(model.name)["block_00"], model, wrong)


def test_ranges_out_of_order_are_refused() -> None:
    graph = _signatures("sana-video-2b-480p")["patch_embed"]
    for name, wrong in (
        ("num_frames", Workload(DimRange(81, 41, 161), 480, 832)),
        ("height", Workload(81, DimRange(720, 720, 480), 832)),
    ):
        with pytest.raises(ProfileError, match=f"workload's {name} is"):
            profiles.profile("patch_embed", graph, WAN, wrong)


def test_dimensions_that_no_workload_sets_are_refused() -> None:
    from sana_rt.tensors import TensorSpec

    strange = Graph("", (), 23, (TensorSpec("x", "float32", ("batch", "depth")),), ())
    with pytest.raises(ProfileError, match="'depth'"):
        profiles.profile("strange", strange, WAN, FIXED)
