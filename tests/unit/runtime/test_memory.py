"""The plan of device memory, for models of full size and without their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from sana_rt import manifest as manifests
from sana_rt.bundle import Bundle
from sana_rt.errors import RequestError
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
from sana_rt.runtime.backends.base import BackendOptions
from sana_rt.runtime.carried_state import NAMES
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.inputs import Inputs, PromptEmbeds
from sana_rt.runtime.memory import MemoryPlan, Phase, Region
from sana_rt.runtime.request import for_model
from sana_rt.runtime.residence import Buffers
from sana_rt.runtime.session import Session

WEIGHT_BYTES = 1000  # of every graph, in the manifests made here
EMBEDS = PromptEmbeds(np.zeros((1, 300, 2304), np.float32), np.ones((1, 300), np.int64))
UNGUIDED = Inputs(prompt_embeds=(EMBEDS,))
GUIDED = Inputs(prompt_embeds=(EMBEDS, EMBEDS))


def session(
    model: ModelSpec,
    dtype: DType = "float32",
    *,
    keep_text_encoder: bool = False,
    max_memory: int | None = None,
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
    backend = onnxruntime.cpu(BackendOptions(threads=1))
    graphs_of = Graphs(bundle, "only", backend)
    return Session(bundle, graphs_of, backend.name, keep_text_encoder, max_memory)


def bytes_of(plan: MemoryPlan, *names: str) -> int:
    """Bytes of tensors, those that each block has one of included."""
    return plan.size_of(tuple(one for one in plan.regions if one.name.split(".")[0] in names))


def column(plan: MemoryPlan, phase: str) -> dict[str, int]:
    """What a phase needs, by what it is for."""
    index = [one.name for one in plan.phases].index(phase)
    return {name: sizes[index] for name, sizes in plan.rows().items()}


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
    assert column(latents, "transformer")["latents"] > 16 * 21 * 60 * 104 * 4 * 5
    assert [phase.name for phase in latents.phases] == ["transformer"]
    caches = column(video, "decoder")["caches"]
    assert caches > 2 * 3.7e9, "two sets of the Wan decoder's feature caches"
    assert column(conditioned, "image encoder")["frames"] == 480 * 832 * 3 + 16 * 60 * 104 * 4
    blocks = 20
    together = (replace(plan, apart=0) for plan in (latents, video, conditioned))
    assert [plan.weight_bytes for plan in together] == [
        (blocks + 6) * WEIGHT_BYTES,
        (blocks + 8) * WEIGHT_BYTES,
        (blocks + 9) * WEIGHT_BYTES,
    ]
    guided = playing.plan(for_model(model, {}), GUIDED, decode=False)
    assert 1.9 < guided.buffer_bytes / latents.buffer_bytes < 2


def region(name: str, size: int, **kinds: bool) -> Region:
    return Region(name, name, "uint8", (size,), **kinds)


#: A stream: 500 bytes alone for the text, 310 + 40 for the transformer, 130 + 20 for the decoder.
STREAM = MemoryPlan(
    "plans",
    (
        Phase("text encoder", {"text_encoder": 450}, (region("ids", 50),), 0),
        Phase(
            "transformer",
            {"block_00": 200, "solver": 10},
            (region("state", 40, carried=True), region("noise", 60, filled=True)),
            activation_bytes=30,
            context_bytes=10,
            recurs=True,
        ),
        Phase(
            "decoder",
            {"vae_decoder": 70},
            (region("cache", 20, carried=True), region("picture", 10)),
            activation_bytes=50,
            recurs=True,
        ),
    ),
    {},
    staged=True,
)


def test_what_is_carried_lives_in_all_phases_that_recur() -> None:
    """Weights add up where phases are loaded together, activations share the larger arena."""
    names = [[one.name for one in STREAM.living((phase,))] for phase in STREAM.phases]
    assert names == [["ids"], ["state", "noise", "cache"], ["state", "cache", "picture"]]
    text, transformer, decoder = STREAM.phases
    assert STREAM.bytes_of((text,)) == 450 + 50
    assert STREAM.bytes_of((transformer,)) == 210 + 30 + 10 + 40 + 60 + 20
    assert STREAM.bytes_of((decoder,)) == 70 + 50 + 40 + 20 + 10
    assert STREAM.bytes_of((transformer, decoder)) == 280 + 50 + 10 + 130
    assert STREAM.total_bytes == 730 + 50 + 10 + 180


def test_a_clip_in_one_chunk_carries_nothing_to_the_decoder() -> None:
    once = replace(STREAM, phases=tuple(replace(one, recurs=False) for one in STREAM.phases))
    names = [[one.name for one in once.living((phase,))] for phase in once.phases]
    assert names == [["ids"], ["state", "noise"], ["cache", "picture"]]


def test_phases_leave_in_the_order_in_which_they_run() -> None:
    plans = [replace(STREAM, apart=count) for count in range(3)]
    named = [[[phase.name for phase in group] for group in plan.groups] for plan in plans]
    assert named == [
        [["text encoder", "transformer", "decoder"]],
        [["text encoder"], ["transformer", "decoder"]],
        [["text encoder"], ["transformer"], ["decoder"]],
    ]
    assert [plan.total_bytes for plan in plans] == [970, 500, 500]
    assert [plan.weight_bytes for plan in plans] == [730, 450, 450]
    assert [plan.buffer_bytes for plan in plans] == [180, 130, 120]


def test_the_table_has_a_column_for_each_phase() -> None:
    """Bytes of the whole, in MiB, and what they do not say."""
    plan = replace(STREAM, apart=2)
    assert plan.rows() == {
        "weights": (450, 210, 70),
        "activations": (0, 30, 50),
        "ids": (50, 0, 0),
        "execution contexts (allowance)": (0, 10, 0),
        "state": (0, 40, 40),
        "noise": (0, 60, 0),
        "cache": (0, 20, 20),
        "picture": (0, 0, 10),
        "needed": (500, 370, 190),
        "staging (pinned, on the host)": (0, 60, 0),
    }
    lines = plan.table().splitlines()
    assert lines[0].split() == ["MiB", "text", "encoder", "transformer", "decoder"]
    assert len({len(line) for line in lines[:11]}) == 1, "columns are aligned"
    assert lines[11].startswith("Loaded at the same time: text encoder (0.0 MiB); then transformer")
    assert lines[12] == (
        "The transformer and decoder take turns, loaded anew at every chunk, which is slow."
    )
    assert lines[13:] == [f"Not included: {'; '.join(plan.not_included)}."]
    assert len(plan.not_included) == 1
    unknown = replace(plan, phases=tuple(replace(p, activation_bytes=None) for p in plan.phases))
    assert unknown.not_included[0] == "activations, which plans sizes as it runs"
    assert "activations" not in unknown.rows()


def test_programs_read_the_same_facts() -> None:
    facts = replace(STREAM, apart=1).facts()
    assert facts["phases"]["transformer"]["needed"] == 370
    assert facts["loaded_at_the_same_time"] == [
        {"phases": ["text encoder"], "bytes": 500},
        {"phases": ["transformer", "decoder"], "bytes": 470},
    ]
    assert facts["total_bytes"] == 500


def test_the_needed_row_is_the_sum_of_the_others() -> None:
    model = PRESETS["sana-video-2b-480p"]
    plan = session(model).plan(for_model(model, {}), GUIDED)
    rows = plan.rows()
    needed = rows.pop("needed")
    assert tuple(map(sum, zip(*rows.values(), strict=True))) == needed


def test_buffers_are_what_was_planned() -> None:
    backend = onnxruntime.cpu(BackendOptions(threads=1))
    regions = (
        Region("latents", "x", "float32", ("batch", 4, "frames")),
        Region("bits", "x", "bfloat16", (3,)),
    )
    plan = MemoryPlan("cpu", (Phase("only", {}, regions),), {"batch": 2, "frames": 5})
    buffers = Buffers(plan.dims, backend.memory)
    buffers.allocate(plan.regions)
    assert backend.memory.allocations == len(buffers) == 2
    assert sum(buffer.nbytes for buffer in buffers.values()) == plan.buffer_bytes
    assert buffers["latents"].shape == (2, 4, 5)
    smaller = buffers.sized(frames=3)["latents"]
    assert (smaller.shape, smaller.address) == ((2, 4, 3), buffers["latents"].address)
    kept = buffers["bits"].address
    buffers.free_all_but(regions[1:])
    buffers.allocate(regions[1:])
    assert (list(buffers), buffers["bits"].address) == (["bits"], kept)
    assert backend.memory.allocations == 2


def test_bundles_without_an_autoencoder_give_latents_only() -> None:
    model = PRESETS["sana-video-2b-720p-dcaev"]
    playing = session(model)
    request = for_model(model, {"num_frames": 81})
    assert not playing.can_decode
    assert playing.plan(request, GUIDED, decode=False).total_bytes > 0
    with pytest.raises(RequestError, match=r"(?s)'dcae' is not exported.*--save-latents"):
        playing.plan(request, GUIDED)
    with pytest.raises(RequestError, match="no graph 'vae_encoder'"):
        playing.plan(request, Inputs(image=np.zeros((704, 1280, 3), np.uint8)), decode=False)
    with pytest.raises(RequestError, match="no text encoder and tokenizer"):
        playing.plan(request, decode=False)


def test_a_clip_is_decoded_at_once_where_that_fits() -> None:
    model = PRESETS["sana-video-2b-720p"]
    request = for_model(model, {})

    def decoding(limit: int) -> list[str]:
        playing = session(model, max_memory=limit)
        return list(playing.plan(request, GUIDED).phase("decoder").weights)

    # the largest tensor: 128 channels of 81 frames, 176 by 320, in float32; four of them
    activations = 4 * 128 * 81 * 176 * 320 * 4
    whole = session(model, max_memory=1 << 50).plan(request, GUIDED)
    least = replace(whole, apart=len(whole.phases) - 1).expected_bytes
    assert least > activations
    assert decoding(least) == ["vae_decoder_whole"]
    assert decoding(least - 1) == ["vae_decoder_first", "vae_decoder"]


def test_what_is_shorter_than_a_window_is_decoded_at_once() -> None:
    model = PRESETS["sana-video-2b-720p"]
    playing = session(model, max_memory=1)
    plan = playing.plan(for_model(model, {"num_frames": 9}), GUIDED)
    assert list(plan.phase("decoder").weights) == ["vae_decoder_whole"]


@pytest.mark.parametrize("change", [{"latent_frames": 3}, {"lookahead": 5}])
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


@pytest.mark.parametrize("around", ["lookahead", "lookback"])
def test_chunks_that_come_one_after_the_other_are_not_looked_around_in(around: str) -> None:
    model = PRESETS["longsana-2b-480p"]
    playing = session(model)
    request = for_model(model, {"num_frames": 81})  # chunks of 11 and 10 latent frames
    assert playing.plan(request, UNGUIDED).total_bytes > 0
    assert playing.graphs.decoder is not None
    playing.graphs.decoder = msgspec.structs.replace(playing.graphs.decoder, **{around: 1})
    with pytest.raises(RequestError, match="Latent frames 0 to 10 cannot be decoded"):
        playing.plan(request, UNGUIDED)


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
