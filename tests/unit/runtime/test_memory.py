"""The plan of device memory, for models of full size and without their weights."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from sana_rt import manifest as manifests
from sana_rt.bundle import Bundle
from sana_rt.errors import DeviceMemoryError, RequestError
from sana_rt.export import autoencoders
from sana_rt.export.graphs import (
    DType,
    text_encoder_graph,
    transformer_graphs,
    vae_graphs,
)
from sana_rt.geometry import chunk_ranges
from sana_rt.manifest import File, Graph, Manifest, Source, Variant
from sana_rt.model_spec import PRESETS, ModelSpec
from sana_rt.runtime.backends import onnxruntime
from sana_rt.runtime.carried_state import NAMES
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.inputs import Inputs, PromptEmbeds
from sana_rt.runtime.memory import Buffers, MemoryPlan, Region
from sana_rt.runtime.request import for_model
from sana_rt.runtime.session import Session

WEIGHT_BYTES = 1000  # of every graph, in the manifests made here
EMBEDS = PromptEmbeds(np.zeros((1, 300, 2304), np.float32), np.ones((1, 300), np.int64))
UNGUIDED = Inputs(prompt_embeds=(EMBEDS,))
GUIDED = Inputs(prompt_embeds=(EMBEDS, EMBEDS))


def session(
    model: ModelSpec, dtype: DType = "float32", *, keep_text_encoder: bool = False
) -> Session:
    """A session of a bundle that has signatures but no files."""
    definitions = [*transformer_graphs(model, dtype), text_encoder_graph(model, dtype)]
    definitions += vae_graphs(model.vae, dtype)
    autoencoder = autoencoders.find(model.vae)
    decoder = None if autoencoder is None else autoencoder.window()
    graphs = {
        one.name: Graph(f"{one.name}.onnx", (), 20, one.inputs, one.outputs) for one in definitions
    }
    files = tuple(File(graph.path, WEIGHT_BYTES, "0" * 64) for graph in graphs.values())
    manifest = Manifest(
        manifests.FORMAT, manifests.FORMAT_VERSION, "test", model, files,
        {"only": Variant(dtype, "", Source("", "", "0" * 64), graphs, decoder=decoder)},
    )  # fmt: skip
    manifests.check(manifest)
    bundle = Bundle(Path("nowhere"), manifest)
    backend = onnxruntime.cpu(threads=1)
    return Session(bundle, Graphs(bundle, "only", backend), backend.name, keep_text_encoder)


def bytes_of(plan: MemoryPlan, *names: str) -> int:
    return sum(plan._bytes(one) for one in plan.regions if one.name in names)


def test_the_carried_state_of_longsana_is_160_megabytes() -> None:
    """20 blocks at 480p in bfloat16: S 20.07 MB, the key sums 0.18 MB, z 139.78 MB."""
    model = PRESETS["longsana-2b-480p"]
    playing = session(model, "bfloat16")
    minute, seconds = (
        playing.plan(for_model(model, {"num_frames": frames}), UNGUIDED) for frames in (961, 161)
    )
    state = 20 * (20 * 112 * 112 * 4 + 20 * 112 * 4 + 30 * 52 * 2240 * 2)
    assert bytes_of(minute, *NAMES) == state
    assert state == pytest.approx(160.0e6, rel=1e-3)
    assert minute.total_bytes == seconds.total_bytes, "memory does not grow with the clip"


def test_a_bidirectional_clip_shares_one_state_of_zeros() -> None:
    model = PRESETS["sana-video-2b-480p"]
    plan = session(model).plan(for_model(model, {}), GUIDED)
    carried, scratch = bytes_of(plan, *NAMES), bytes_of(plan, *(f"{name}_out" for name in NAMES))
    assert carried == scratch == 2 * (20 * 112 * 112 * 4 + 20 * 112 * 4 + 30 * 52 * 2240 * 4)


def test_the_plan_counts_what_the_request_uses() -> None:
    model = PRESETS["sana-video-2b-480p"]
    playing = session(model)
    request = for_model(model, {"guidance_scale": 1})
    latents = playing.plan(request, UNGUIDED, decode=False)
    video = playing.plan(request, UNGUIDED)
    image = np.zeros((480, 832, 3), np.uint8)
    conditioned = playing.plan(request, Inputs(prompt_embeds=(EMBEDS,), image=image))
    assert dict(latents.rows())["latents"] > 16 * 21 * 60 * 104 * 4 * 5
    assert "autoencoder" not in dict(latents.rows())
    caches = dict(video.rows())["autoencoder"]
    assert caches > 2 * 3.7e9, "two sets of the Wan decoder's feature caches"
    assert dict(conditioned.rows())["autoencoder"] - caches == 480 * 832 * 3 + 16 * 60 * 104 * 4
    blocks = 20
    assert latents.weight_bytes == (blocks + 6) * WEIGHT_BYTES
    assert video.weight_bytes == (blocks + 8) * WEIGHT_BYTES
    assert conditioned.weight_bytes == (blocks + 9) * WEIGHT_BYTES
    guided = playing.plan(for_model(model, {}), GUIDED, decode=False)
    assert 1.9 < guided.buffer_bytes / latents.buffer_bytes < 2


def test_a_text_encoder_that_goes_does_not_add_up() -> None:
    weights = {"text_encoder": 500, "block_00": 300, "solver": 1}
    gone, kept = (
        MemoryPlan("cpu", weights, (), {}, keep_text_encoder=keep) for keep in (False, True)
    )
    assert (gone.weight_bytes, kept.weight_bytes) == (500, 801)
    assert MemoryPlan("cpu", weights | {"block_01": 400}, (), {}).weight_bytes == 701


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    regions = (
        Region("a", "latents", "float32", ("batch", 1000)),
        Region("b", "state", "bfloat16", (500,)),
    )
    plan = MemoryPlan("onnxruntime", {"block_00": 200}, regions, {"batch": 2})
    assert plan.total_bytes == 200 + 8000 + 1000
    plan.check(9200)
    plan.check(9000, loaded=200)
    plan.check(None)
    with pytest.raises(DeviceMemoryError, match=r"(?s)9,200 bytes on onnxruntime.*9,199 are free"):
        plan.check(9199)


def test_the_table_adds_up() -> None:
    model = PRESETS["sana-video-2b-480p"]
    plan = session(model).plan(for_model(model, {}), GUIDED)
    lines = plan.table().splitlines()
    assert sum(size for _, size in plan.rows()) == plan.total_bytes
    assert lines[-2].split() == ["planned", f"{plan.total_bytes / 2**20:,.1f}", "MiB"]
    assert lines[-1] == f"Not included: {'; '.join(plan.not_included)}."
    assert plan.not_included[0] == "activations, which onnxruntime sizes as it runs"


def test_activations_that_the_backend_knows_are_planned() -> None:
    plan = MemoryPlan("plans", {"block_00": 200}, (), {}, activation_bytes=50)
    assert plan.total_bytes == 250
    assert dict(plan.rows())["activations"] == 50
    assert plan.table().splitlines()[-2].startswith("planned")
    assert len(plan.not_included) == 1
    with pytest.raises(DeviceMemoryError, match="249 are free"):
        plan.check(249)


def test_buffers_are_what_was_planned() -> None:
    backend = onnxruntime.cpu(threads=1)
    regions = (
        Region("latents", "x", "float32", ("batch", 4, "frames")),
        Region("bits", "x", "bfloat16", (3,)),
    )
    plan = MemoryPlan("cpu", {}, regions, {"batch": 2, "frames": 5})
    buffers = Buffers(plan, backend.memory)
    assert backend.memory.allocations == len(buffers) == 2
    assert sum(buffer.nbytes for buffer in buffers.values()) == plan.buffer_bytes
    assert buffers["latents"].shape == (2, 4, 5)
    smaller = buffers.sized(frames=3)["latents"]
    assert (smaller.shape, smaller.address) == ((2, 4, 3), buffers["latents"].address)
    assert backend.memory.allocations == 2


def test_bundles_without_an_autoencoder_give_latents_only() -> None:
    model = PRESETS["sana-video-2b-720p"]
    playing = session(model)
    request = for_model(model, {})
    assert not playing.can_decode
    assert playing.plan(request, GUIDED, decode=False).total_bytes > 0
    with pytest.raises(RequestError, match=r"(?s)'ltx2' is not exported.*--save-latents"):
        playing.plan(request, GUIDED)
    with pytest.raises(RequestError, match="no graph 'vae_encoder'"):
        playing.plan(request, Inputs(image=np.zeros((704, 1280, 3), np.uint8)), decode=False)
    with pytest.raises(RequestError, match="no text encoder and tokenizer"):
        playing.plan(request, decode=False)


@pytest.mark.parametrize("change", [{"latent_frames": 3}, {"lookahead": 1}])
def test_a_clip_that_whole_calls_do_not_decode_is_refused(change: dict[str, int]) -> None:
    model = PRESETS["sana-video-2b-480p"]
    playing = session(model)
    request = for_model(model, {"num_frames": 17})  # 5 latent frames
    assert playing.plan(request, GUIDED).total_bytes > 0
    assert playing.graphs.decoder is not None
    playing.graphs.decoder = msgspec.structs.replace(playing.graphs.decoder, **change)
    with pytest.raises(RequestError, match=r"(?s)Latent frames 0 to 4 cannot be decoded .* whole"):
        playing.plan(request, GUIDED)
    assert playing.plan(request, GUIDED, decode=False).total_bytes > 0


@pytest.mark.parametrize(
    ("latent_frames", "bounds"),
    [
        (1, [0, 1]),
        (10, [0, 10]),
        (19, [0, 19]),
        (20, [0, 10, 20]),
        (21, [0, 11, 21]),
        (41, [0, 11, 21, 31, 41]),
        (48, [0, 18, 28, 38, 48]),
    ],
)
def test_chunks_of_a_causal_clip(latent_frames: int, bounds: list[int]) -> None:
    chunks = chunk_ranges(PRESETS["longsana-2b-480p"], latent_frames)
    assert [0, *(chunk.stop for chunk in chunks)] == bounds
    assert [chunk.start for chunk in chunks] == bounds[:-1]
    whole = chunk_ranges(PRESETS["sana-video-2b-480p"], latent_frames)
    assert whole == (range(latent_frames),)
