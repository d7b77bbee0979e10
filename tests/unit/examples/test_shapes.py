"""The programs that train the `shapes` model: clips, captions, tokenizer, autoencoder, chunks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import SanaVideoPipeline
from examples.shapes import clips, judge, sampling, to_original, tokenizer, train_causal, wan, world
from examples.shapes.model import (
    CAUSAL,
    CAUSAL_FOLDER,
    CHUNK,
    SAMPLING,
    STREAMING,
    TEXT,
    TRANSFORMER,
    Model,
    load,
    load_causal,
    load_tokenizer,
    load_vae,
)
from examples.shapes.training import AdamW, Muon, Schedule, Training
from examples.shapes.world import Subject, Window
from safetensors.torch import save_file

from sana_rt.export.checkpoint import Parts, open_checkpoint
from sana_rt.model_spec import WAN_VAE, ModelSpec, StreamingSpec

# float32, a network of some 40 convolutions: rounding, far below what a wrong frame would cost
WHOLE_CLIP_TOLERANCE = 1e-4
# the same in float32, over 20 steps with guidance 4, of latents of magnitude 5
SAMPLED_TOLERANCE = 1e-3
# of a few prompts; the README of `shapes` has the figures for all
FOLLOWED = 0.8
MINUTE = 121  # latent frames of 60 s, the first of which is one frame and the others four
CHECKPOINT = Path(clips.__file__).parent / "checkpoints"


def test_clips_are_the_same_for_the_same_index() -> None:
    np.testing.assert_array_equal(clips.batch(1, 5, 2)[1], clips.batch(1, 6, 1)[0])
    assert clips.scene(1, 5) != clips.scene(2, 5)
    assert clips.caption(1, 5) == clips.caption(1, 5)


def test_no_training_clip_shows_a_held_out_combination() -> None:
    held_out = world.held_out()
    shown = {clips.scene(3, index).subject.combination for index in range(2000)}
    every = len(world.COLOURS) * len(world.SHAPES) * (len(world.DIRECTIONS) + 1)
    assert not shown & held_out
    assert len(shown) > 0.95 * (every - len(held_out))


def test_a_later_window_is_a_crop_of_the_longer_clip() -> None:
    scene = clips.scene(1, 0)
    whole = world.render(scene, Window(num_frames=40))
    late = world.render(scene, Window(num_frames=10, first_frame=30))
    np.testing.assert_allclose(late, whole[30:], atol=1e-5)
    corner = world.render(scene, Window(num_frames=40, size=16, left=20, top=8))
    np.testing.assert_allclose(corner, whole[:, 8:24, 20:36], atol=1e-5)


def test_captions_are_in_both_languages_and_vary() -> None:
    captions = [clips.caption(1, index) for index in range(200)]
    assert {caption.language for caption in captions} == {"en", "zh"}
    assert len({clips.caption(1, 0, draw).text for draw in range(20)}) > 3


def test_the_readme_lists_the_words_that_the_model_knows() -> None:
    listed = {
        "colours": world.COLOURS,
        "shapes": world.SHAPES,
        "directions": world.DIRECTIONS,
        "speeds": (*world.SPEEDS, world.STILL),
        "backgrounds": world.BACKGROUNDS,
    }
    readme = Path(world.__file__).with_name("README.md").read_text().splitlines()
    for what, values in listed.items():
        english = ", ".join(world.word(value, "en") for value in values)
        chinese = "、".join(world.word(value, "zh") for value in values)
        assert f"| {what} | {english} | {chinese} |" in readme


def test_the_tokenizer_keeps_gemmas_numbers_and_any_text() -> None:
    trained = tokenizer.train()
    assert trained.get_vocab_size() <= TEXT.vocab_size
    assert trained.encode("").ids == [TEXT.bos_token_id]
    assert trained.token_to_id("<pad>") == TEXT.pad_token_id
    for text in ("a red circle", "一个红色的圆形", "ünseen ✓ 龘"):
        assert trained.decode(trained.encode(text).ids) == text
    longest = max(len(trained.encode(clips.caption(2, index).text).ids) for index in range(500))
    assert longest <= TEXT.max_tokens


def test_the_whole_clip_pass_equals_diffusers_chunks() -> None:
    torch.manual_seed(0)
    vae = wan.build().eval().requires_grad_(False)
    clip = torch.from_numpy(clips.batch(1, 0, 1, Window(num_frames=13)))[..., :32, :32]
    latents = vae.encode(clip).latent_dist.mode()
    decoded = vae.decode(latents).sample
    wan.whole_clip(vae)
    torch.testing.assert_close(wan.encode(vae, clip)[0], latents, atol=WHOLE_CLIP_TOLERANCE, rtol=0)
    torch.testing.assert_close(
        wan.decode(vae, latents).clamp(-1, 1), decoded, atol=WHOLE_CLIP_TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_training_goes_on_where_it_stopped(
    tmp_path: Path, optimizer: type[AdamW] | type[Muon]
) -> None:
    def run(steps: int, path: Path) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)
        training = Training(module, Schedule(0.1, 500, 10), path, make_optimizer=optimizer)
        training.schedule = Schedule(0.1, steps, 10, decay=1e-9)

        def loss(step: int) -> dict[str, torch.Tensor]:
            generator = torch.Generator().manual_seed(step)
            return {"loss": module(torch.randn(4, 3, generator=generator)).square().mean()}

        training.run(loss, lambda _: None)
        return module.weight.detach()

    at_once = run(500, tmp_path / "at_once.pt")
    run(250, tmp_path / "in_two.pt")
    torch.testing.assert_close(run(500, tmp_path / "in_two.pt"), at_once)


def test_muon_moves_convolutions_by_orthogonal_matrices() -> None:
    torch.manual_seed(0)
    module = torch.nn.Conv2d(48, 32, 1)
    optimizer = Muon(module, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    before = module.weight.detach().clone()
    module(torch.randn(4, 48, 5, 5)).square().mean().backward()
    optimizer.step()
    step = (module.weight.detach() - before).flatten(1)
    largest, smallest = torch.linalg.svdvals(step)[[0, -1]]
    assert largest < 2.5 * smallest  # Newton-Schulz stops at singular values of 0.7 to 1.2
    assert not torch.equal(module.bias, torch.zeros_like(module.bias))
    optimizer.zero_grad()
    assert module.weight.grad is None
    assert module.bias.grad is None


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    schedule = Schedule(1.0, 100, 10, decay=0.5)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(30) == 1.0
    assert schedule(75) == pytest.approx(0.5)
    assert schedule(100) == 0


@pytest.mark.parametrize("latent_frames", [5, 8, 9, 11])
def test_a_stream_has_the_frames_asked_for(latent_frames: int) -> None:
    torch.manual_seed(0)
    model = Model().requires_grad_(False)
    for weight in model.transformer.parameters():  # at the start of training some are zero
        weight.copy_(weight + 0.05 * torch.randn_like(weight))
    ids = torch.tensor([[TEXT.bos_token_id, 7, 8]])
    mask = torch.ones_like(ids)
    text = model.text_encoder(ids, mask)
    latents = sampling.stream(model.transformer, text, mask, latent_frames)
    assert latents.shape[2] == latent_frames
    # chunks are causal: a longer stream begins with the same frames
    if latent_frames % CHUNK == 1:
        longer = sampling.stream(model.transformer, text, mask, latent_frames + CHUNK)
        torch.testing.assert_close(longer[:, :, :latent_frames], latents)


def test_what_follows_a_clip_follows_where_it_is() -> None:
    torch.manual_seed(0)
    period = torch.randn(2, 3, 2 * CHUNK, 2, 2)
    repeating = torch.cat([period, period, period], dim=2)
    for begin in (1, 6, 17):  # behind the last, only the clip's repetition has four frames
        seen = repeating[:, :, begin : begin + CHUNK]
        drifted = torch.cat([torch.zeros_like(seen), seen + 0.1 * torch.randn_like(seen)], dim=2)
        place = begin % (2 * CHUNK) + CHUNK
        expected = repeating[:, :, place : place + CHUNK]
        torch.testing.assert_close(train_causal.following(repeating, drifted), expected)


@pytest.mark.parametrize("layout", ["original", "longsana"])
def test_the_original_layout_opens_as_the_same_tensors(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(0)
    tensors = {
        name: torch.randn_like(tensor).contiguous()
        for name, tensor in Model().transformer.state_dict().items()
    }
    (tmp_path / "transformer").mkdir()
    save_file(tensors, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    path = tmp_path / "model.pth"
    CliRunner().invoke(
        to_original.main, [str(tmp_path), str(path), "--layout", layout], catch_exceptions=False
    )
    spec = ModelSpec("shapes", TRANSFORMER, WAN_VAE, TEXT)
    if layout == "longsana":
        spec = msgspec.structs.replace(spec, transformer=CAUSAL, streaming=StreamingSpec())
    opened = open_checkpoint(path, preset=spec)
    assert opened.layout == layout
    assert set(opened.transformer) == set(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(opened.transformer.load(name), tensor, rtol=0, atol=0)


def test_the_committed_checkpoint_opens_and_is_small() -> None:
    opened = open_checkpoint(CHECKPOINT)
    assert opened.spec.transformer == TRANSFORMER
    assert opened.spec.text == TEXT
    assert opened.spec.sampling == SAMPLING
    assert not opened.notes
    files = (path for path in CHECKPOINT.rglob("*") if path.is_file() and not path.is_symlink())
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_the_committed_causal_model_is_in_the_layout_of_longsana() -> None:
    folder = CHECKPOINT / CAUSAL_FOLDER
    parts = Parts(CHECKPOINT / "vae", CHECKPOINT / "text_encoder", CHECKPOINT / "tokenizer")
    opened = open_checkpoint(folder / "longsana.pt", preset=str(folder / "model.json"), parts=parts)
    assert opened.layout == "longsana"
    assert not opened.notes
    assert opened.spec.transformer == CAUSAL
    assert opened.spec.streaming == STREAMING
    assert opened.spec.vae == open_checkpoint(CHECKPOINT).spec.vae


def held_out_prompts(count: int) -> tuple[list[Subject], list[str]]:
    """Subjects that training did not show, and prompts for them in turn in both languages."""
    chosen = judge.held_out(count)
    texts = [
        world.prompt(subject, background, "zh" if index % 2 else "en")
        for index, (subject, background) in enumerate(chosen)
    ]
    return [subject for subject, _ in chosen], texts


def test_the_trained_model_shows_what_prompts_say() -> None:
    subjects, texts = held_out_prompts(16)
    model, tokenizer = load(CHECKPOINT), load_tokenizer(CHECKPOINT / "tokenizer")
    latents = sampling.sample(model, tokenizer, texts)
    vae = load_vae(CHECKPOINT / "vae")
    clips = [sampling.frames(vae, each)[0] for each in latents.split(1)]  # fits into caches
    scores = judge.score([judge.read(clip) for clip in clips], subjects)
    assert min(score.fraction for score in scores.values()) >= FOLLOWED


def test_the_causal_model_shows_what_prompts_say_at_the_end_of_a_minute() -> None:
    subjects, texts = held_out_prompts(12)
    model, tokenizer = load_causal(CHECKPOINT), load_tokenizer(CHECKPOINT / "tokenizer")
    ids, mask = sampling.tokenize(tokenizer, texts)
    with torch.no_grad():
        text = model.text_encoder(ids, mask)
    latents = sampling.stream(model.transformer, text, mask, MINUTE)
    # The first of the frames, decoded without those before them, are not judged.
    vae, end = load_vae(CHECKPOINT / "vae"), latents[:, :, -6 * CHUNK :]
    clips = [sampling.frames(vae, each)[0] for each in end.split(1)]  # fits into caches
    last = [clip[-judge.JUDGED_SECONDS * world.FPS :] for clip in clips]
    scores = judge.score([judge.read(clip) for clip in last], subjects)
    assert min(scores[name].fraction for name in ("colour", "direction")) >= FOLLOWED


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_diffusers_samples_the_same_clip() -> None:
    _, texts = held_out_prompts(2)
    pipeline = SanaVideoPipeline.from_pretrained(CHECKPOINT, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    model = load(CHECKPOINT)
    theirs = sampling.diffusers(pipeline, texts, output_type="latent")
    ours = sampling.sample(model, pipeline.tokenizer, texts)
    torch.testing.assert_close(ours, theirs, atol=SAMPLED_TOLERANCE, rtol=0)


def test_the_judge_reads_what_the_autoencoder_decodes() -> None:
    vae = load_vae(CHECKPOINT / "vae")
    scenes = [clips.scene(9, index) for index in range(20)]
    alone = [scene for scene in scenes if scene.companion is None][:16]
    readings = []
    for scene in alone:
        clip = torch.from_numpy(world.render(scene).transpose(3, 0, 1, 2).copy())[None]
        latents = wan.normalised(vae, wan.encode(vae, clip)[0])
        readings.append(judge.read(sampling.frames(vae, latents)[0]))
    scores = judge.score(readings, [scene.subject for scene in alone])
    for attribute in ("colour", "direction", "speed"):
        assert scores[attribute].fraction == 1.0, attribute
    assert scores["shape"].fraction >= 0.9
