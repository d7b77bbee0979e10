"""Sessions on the small bundle: prompts, memory, repetition, and what goes wrong."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from sana_rt import bundle as bundles
from sana_rt.bundle import Bundle
from sana_rt.errors import (
    BackendError,
    BundleFileError,
    DeviceMemoryError,
    ManifestMissingError,
    ManifestReferenceError,
    NonFiniteError,
    RequestError,
    UsageError,
)
from sana_rt.graph_names import is_block
from sana_rt.manifest import DimRange, Manifest
from sana_rt.runtime import prompts
from sana_rt.runtime.backends.base import Artifact, Context
from sana_rt.runtime.backends.onnxruntime import OnnxRuntime
from sana_rt.runtime.inputs import NO_INPUTS, Inputs, PromptEmbeds
from sana_rt.runtime.pipeline import Progress
from sana_rt.runtime.request import Request, for_model
from sana_rt.runtime.session import Session

PROMPT = "a red circle moving to the right"


@pytest.fixture
def session(small_bundle: Path) -> Session:
    return Session.open(small_bundle, threads=1)


def request(session: Session, **options: Any) -> Request:
    small = {"prompt": PROMPT, "height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 3}
    return session.request(**small | options)


def latents(session: Session, request: Request, inputs: Inputs = NO_INPUTS) -> NDArray[np.float32]:
    return np.concatenate([chunk.latents for chunk in session.latents(request, inputs)], axis=2)


def changed(small_bundle: Path, root: Path, **fields: Any) -> Path:
    """A copy of the bundle with other fields in its manifest."""
    manifest: Manifest = Bundle.open(small_bundle).manifest
    for file in manifest.files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(small_bundle / file.path, root / file.path)
    bundles.save(root, msgspec.structs.replace(manifest, **fields))
    return root


def test_a_prompt_becomes_frames(session: Session) -> None:
    clip = session.generate(request(session))
    assert inspect.isgenerator(clip)
    first = next(clip)
    assert (first.shape, first.dtype) == ((1, 32, 48, 3), np.uint8)
    assert [frames.shape for frames in clip] == [(4, 32, 48, 3)] * 2


def test_a_seed_gives_the_same_clip_in_every_session(session: Session, small_bundle: Path) -> None:
    one = latents(session, request(session, seed=4))
    np.testing.assert_array_equal(latents(session, request(session, seed=4)), one)
    other = Session.open(small_bundle, threads=1, keep_text_encoder=True)
    np.testing.assert_array_equal(latents(other, request(other, seed=4)), one)
    assert not np.array_equal(latents(session, request(session, seed=5)), one)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a blue square"},
        {"negative_prompt": "a red circle"},
        {"motion_score": None},
        {"guidance_scale": 1.0},
        {"guidance_scale": 2.0},
        {"solver": "flow_euler"},
        {"flow_shift": 3.0},
        {"num_inference_steps": 4},
    ],
)
def test_every_option_reaches_the_latents(session: Session, change: dict[str, Any]) -> None:
    before = latents(session, request(session))
    assert not np.array_equal(latents(session, request(session, **change)), before)


def test_embeddings_of_the_prompts_give_the_same_latents(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[PromptEmbeds, ...]] = []
    project = prompts.project

    def spy(graphs: Any, buffers: Any, embeds: tuple[PromptEmbeds, ...]) -> None:
        seen.append(embeds)
        project(graphs, buffers, embeds)

    monkeypatch.setattr(prompts, "project", spy)
    prompted = latents(session, request(session))
    (embeds,) = seen
    negative, positive = embeds
    assert negative.attention_mask.sum() == 1, "an empty negative prompt is BOS alone"
    assert positive.attention_mask.sum() > 10
    given = latents(session, request(session, prompt=""), Inputs(prompt_embeds=embeds))
    np.testing.assert_array_equal(given, prompted)


def test_nothing_is_allocated_after_the_first_step(session: Session) -> None:
    """Not while a clip is made, and not for the next clip of the same size."""
    memory = session.graphs.memory
    counts: list[int] = []
    clip = session.generate(
        request(session, seed=1), progress=lambda _: counts.append(memory.allocations)
    )
    list(clip)
    assert counts[0] == counts[-1] == len(session.plan(request(session)).regions)
    list(session.generate(request(session, seed=2, prompt="something else")))
    assert memory.allocations == counts[0]
    latents(session, request(session, num_frames=5))
    assert memory.allocations > counts[0], "another size is planned and allocated anew"


def test_weights_of_the_text_encoder_go_when_it_has_run(
    session: Session, small_bundle: Path
) -> None:
    latents(session, request(session))
    assert "text_encoder" not in session.graphs.opened
    kept = Session.open(small_bundle, threads=1, keep_text_encoder=True)
    latents(kept, request(kept))
    assert "text_encoder" in kept.graphs.opened


def test_what_is_compiled_for_sizes_is_loaded_again_for_others(
    causal_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where memory is the same: a clip whose last chunk is shorter than any before."""
    opened: list[DimRange] = []

    def open_(self: OnnxRuntime, artifact: Artifact, *, lasting: bool = True) -> Context:
        if artifact.name == "block_00":
            opened.append(artifact.sizes["frames"])
        return original(self, artifact, lasting=lasting)

    original = OnnxRuntime.open
    monkeypatch.setattr(OnnxRuntime, "open", open_)
    monkeypatch.setattr(OnnxRuntime, "specializes", True)
    with Session.open(causal_bundle, threads=1) as session:
        for num_frames in (9, 17, 17):
            one = session.request(prompt="x", num_frames=num_frames, height=32, width=48)
            assert sum(map(len, session.stream(one))) == num_frames
    assert opened == [DimRange(3, 3, 3), DimRange(2, 3, 3)]


def test_a_second_clip_ends_the_first(session: Session) -> None:
    """They would share buffers; the first must not go on with the second's latents."""
    first = session.generate(request(session))
    next(first)
    second = session.generate(request(session))
    with pytest.raises(UsageError, match="Another clip was started"):
        next(first)
    assert sum(len(frames) for frames in second) == 9


def test_progress_is_complete(session: Session) -> None:
    seen: list[Progress] = []
    list(session.generate(request(session), progress=seen.append))
    last = {progress.stage: (progress.done, progress.total) for progress in seen}
    assert list(last) == ["encode", "load", "denoise", "decode"]
    assert (last["encode"], last["denoise"], last["decode"]) == ((2, 2), (3, 3), (3, 3))
    assert last["load"][0] == last["load"][1] == len(session.graphs.opened)


def test_too_little_memory_is_refused_before_anything_is_loaded(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.graphs.memory, "free_bytes", lambda: 1000)
    with pytest.raises(DeviceMemoryError, match=r"of which 1,000 are free"):
        session.latents(request(session))
    assert (session.graphs.memory.allocations, session.graphs.opened) == (0, ())


def test_the_first_graph_that_writes_nan_is_named(small_bundle: Path, tmp_path: Path) -> None:
    """A weight of the third block is not a number."""
    root = changed(small_bundle, tmp_path / "bundle")
    manifest = Bundle.open(root).manifest
    path = root / manifest.variants["fp32"].graphs["block_02"].weights[0]
    values = np.frombuffer(path.read_bytes(), np.float32).copy()
    values[len(values) // 2 :] = np.nan
    path.unlink()  # the link; the bundle it was linked from stays whole
    path.write_bytes(values.tobytes())
    session = Session.open(root, threads=1)
    with pytest.raises(
        NonFiniteError, match=r"'block_02' wrote [\d,]+ of .* 'tokens_out'.*step 1 of 3, timestep 9"
    ):
        list(session.latents(request(session), check_finite=True))
    with pytest.raises(NonFiniteError, match=r"1,152 of 1,152 latents [^$]*--check-finite"):
        list(session.latents(request(session)))


def test_finite_clips_pass_the_check(session: Session) -> None:
    checked = session.generate(request(session), check_finite=True)
    assert sum(len(frames) for frames in checked) == 9


def test_inputs_are_checked_before_anything_is_loaded(session: Session) -> None:
    with pytest.raises(RequestError, match="noise"):
        session.generate(request(session), Inputs(noise=np.zeros((1, 2), np.float32)))
    assert session.graphs.opened == ()


def test_a_bundle_without_a_tokenizer_needs_embeddings(small_bundle: Path, tmp_path: Path) -> None:
    session = Session.open(changed(small_bundle, tmp_path / "bundle", tokenizer=None), threads=1)
    with pytest.raises(RequestError, match="no text encoder and tokenizer"):
        session.latents(request(session))


def test_what_cannot_be_opened(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestMissingError):
        Session.open(tmp_path)
    with pytest.raises(ManifestReferenceError, match="'int4'"):
        Session.open(small_bundle, variant="int4")
    variants = Bundle.open(small_bundle).manifest.variants
    other = msgspec.structs.replace(variants["fp32"], dtype="bfloat16", graphs={}, decoder=None)
    root = changed(small_bundle, tmp_path / "bundle", variants={"bf16": other})
    with pytest.raises(BackendError, match="in bfloat16, and ONNX Runtime plays float32 only"):
        Session.open(root, threads=1)


def test_a_variant_without_a_graph_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    variants = Bundle.open(small_bundle).manifest.variants
    graphs = {name: graph for name, graph in variants["fp32"].graphs.items() if name != "solver"}
    part = msgspec.structs.replace(variants["fp32"], graphs=graphs)
    root = changed(small_bundle, tmp_path / "bundle", variants={"fp32": part})
    with pytest.raises(ManifestReferenceError, match="'fp32' has no graph 'solver'"):
        Session.open(root, threads=1).latents(for_small(root))


@pytest.mark.parametrize("count", [4, 1_000_000_000])
def test_a_bundle_without_blocks_is_refused_at_once(
    count: int, small_bundle: Path, tmp_path: Path
) -> None:
    manifest = Bundle.open(small_bundle).manifest
    fp32 = manifest.variants["fp32"]
    graphs = {name: each for name, each in fp32.graphs.items() if not is_block(name)}
    del graphs["prompt"]  # whose outputs say how many there are
    model = msgspec.structs.replace(
        manifest.model,
        transformer=msgspec.structs.replace(manifest.model.transformer, num_layers=count),
    )
    variants = {"fp32": msgspec.structs.replace(fp32, graphs=graphs)}
    root = changed(small_bundle, tmp_path / "bundle", variants=variants, model=model)
    with pytest.raises(ManifestReferenceError, match="has no graph 'block_00'"):
        Session.open(root, threads=1).latents(for_small(root))


def test_another_size_of_patches_is_refused_by_the_first_graph_that_runs(
    small_bundle: Path, tmp_path: Path
) -> None:
    """No signature has it: rows and columns have names, and are counted from it."""
    model = Bundle.open(small_bundle).manifest.model
    patches = msgspec.structs.replace(model.transformer, patch_size=(1, 4, 4))
    model = msgspec.structs.replace(model, transformer=patches)
    root = changed(small_bundle, tmp_path / "bundle", model=model)
    with pytest.raises(BackendError, match="failed in the graph 'patch_embed'"):
        list(Session.open(root, threads=1).latents(for_small(root)))


def test_a_tokenizer_that_is_not_the_listed_one_is_refused(
    small_bundle: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(small_bundle, tmp_path / "bundle")
    path = root / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"circle", b"square", 1))
    with pytest.raises(BundleFileError, match=r"tokenizer\.json has SHA-256"):
        Session.open(root, threads=1).latents(for_small(root))


def for_small(root: Path) -> Request:
    return for_model(Bundle.open(root).manifest.model, {"prompt": PROMPT, "num_frames": 5})


def test_a_file_that_is_another_graph_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    """What the manifest says fits together, but a file is not what it says; its hash is right."""
    root = tmp_path / "bundle"
    shutil.copytree(small_bundle, root)
    manifest = Bundle.open(root).manifest
    shutil.copyfile(root / "fp32/final_layer.onnx", root / "fp32/block_01.onnx")
    files = bundles.describe(root, [root / file.path for file in manifest.files])
    bundles.save(root, msgspec.structs.replace(manifest, files=files))
    session = Session.open(root, threads=1)
    with pytest.raises(BundleFileError, match=r"block_01\.onnx (has|keeps weights)"):
        list(session.latents(for_small(root)))


def test_a_bundle_is_named_by_a_string_as_by_a_path(small_bundle: Path) -> None:
    assert Session.open(str(small_bundle), threads=1).bundle.root == small_bundle


def test_a_clip_is_made_of_a_request_alone(session: Session) -> None:
    with pytest.raises(UsageError, match="makes requests"):
        session.generate(PROMPT)  # type: ignore[arg-type]
