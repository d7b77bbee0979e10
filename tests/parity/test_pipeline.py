"""Whole clips against diffusers' pipelines, same weights, prompt embeddings and noise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLLTX2Video,
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)
from numpy.typing import NDArray
from PIL import Image

from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.export.modules.block import BlockState
from sana_rt.export.modules.transformer import Transformer
from sana_rt.export.seeded import SMALL
from sana_rt.geometry import latents_shape
from sana_rt.runtime import noise
from sana_rt.runtime.inputs import Inputs, PromptEmbeds
from sana_rt.runtime.request import Request, for_model
from sana_rt.runtime.session import Session

HEIGHT, WIDTH, FRAMES = 64, 96, 17
STEPS, GUIDANCE = 10, 6.0

# Largest difference over largest latent; 1e-3 is asked for. One forward may differ by 2e-5 (the
# transformer's own tolerance); guidance multiplies that by up to 11 and the steps, whose latents
# keep less than half of it on average, by about two, but rounding errors of the two prompts are
# alike and of either sign. Below 1e-6 is seen.
LATENTS_TOLERANCE = 2e-5
# Bytes differ where a value lies on the edge between two of them.
BYTE_TOLERANCE = 1


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["480p", "720p"])
def folders(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A checkpoint with the autoencoder of Wan or LTX-2, and its bundle."""
    if request.param == "480p":
        names = ("small_checkpoint", "small_bundle")
        checkpoint, bundle = (request.getfixturevalue(name) for name in names)
        return checkpoint, bundle
    folder: Path = request.getfixturevalue("folder_720p")
    return folder / "checkpoint", folder / "bundle"


@pytest.fixture
def session(folders: tuple[Path, Path]) -> Session:
    return Session.open(folders[1], threads=1)


@pytest.fixture
def embeds() -> tuple[PromptEmbeds, PromptEmbeds]:
    """A short negative prompt and a longer one, so that masks matter."""
    random = np.random.default_rng(3)
    length, channels = SMALL.text.max_tokens, SMALL.transformer.caption_channels
    negative, positive = (
        PromptEmbeds(
            random.standard_normal((1, length, channels), np.float32),
            (np.arange(length) < tokens).astype(np.int64)[None],
        )
        for tokens in (1, 9)
    )
    return negative, positive


@pytest.fixture
def start(session: Session) -> NDArray[np.float32]:
    shape = latents_shape(session.model, FRAMES, HEIGHT, WIDTH)
    return np.random.default_rng(4).standard_normal(shape, np.float32)


@pytest.fixture
def models(folders: tuple[Path, Path], session: Session) -> dict[str, Any]:
    """The checkpoint's parts as diffusers loads them."""
    autoencoders = {"wan": AutoencoderKLWan, "ltx2": AutoencoderKLLTX2Video}
    vae = autoencoders[session.model.vae.kind]
    return {
        "transformer": SanaVideoTransformer3DModel.from_pretrained(folders[0] / "transformer"),
        "vae": vae.from_pretrained(folders[0] / "vae"),
        "text_encoder": None,
        "tokenizer": None,
    }


def run(
    pipeline: SanaVideoPipeline | SanaImageToVideoPipeline,
    start: NDArray[np.float32],
    embeds: tuple[PromptEmbeds, PromptEmbeds],
    **arguments: Any,
) -> NDArray[Any]:
    pipeline.set_progress_bar_config(disable=True)
    negative, positive = embeds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own, about its and numpy's futures
        output = pipeline(
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=HEIGHT,
            width=WIDTH,
            frames=FRAMES,
            latents=torch.from_numpy(start.copy()),
            prompt_embeds=torch.from_numpy(positive.hidden_states),
            prompt_attention_mask=torch.from_numpy(positive.attention_mask),
            negative_prompt_embeds=torch.from_numpy(negative.hidden_states),
            negative_prompt_attention_mask=torch.from_numpy(negative.attention_mask),
            negative_prompt=None,
            use_resolution_binning=False,
            **arguments,
        )
    return np.asarray(output.frames)


def request(session: Session, *, conditioned: bool = False, **options: Any) -> Request:
    given = {
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
    }
    return for_model(session.model, given | options, conditioned=conditioned)


def play(
    session: Session, request: Request, inputs: Inputs
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    latents: list[NDArray[np.float32]] = []
    clip = session.generate(request, inputs, on_chunk=lambda chunk: latents.append(chunk.latents))
    frames = np.concatenate(list(clip))
    return np.concatenate(latents, axis=2), frames


def difference(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_text_to_video_is_diffusers(
    session: Session,
    models: dict[str, Any],
    embeds: tuple[PromptEmbeds, PromptEmbeds],
    start: NDArray[np.float32],
) -> None:
    scheduler = DPMSolverMultistepScheduler(
        flow_shift=session.model.sampling.flow_shift,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
    )
    pipeline = SanaVideoPipeline(**models, scheduler=scheduler)
    reference = run(pipeline, start, embeds, prompt=None, output_type="latent")
    inputs = Inputs(noise=start, prompt_embeds=embeds)
    latents, frames = play(session, request(session), inputs)
    assert difference(latents, reference) <= LATENTS_TOLERANCE
    expected = run(pipeline, start, embeds, prompt=None, output_type="np")
    expected = np.rint(expected.reshape(FRAMES, HEIGHT, WIDTH, 3) * 255)
    assert frames.shape == expected.shape
    assert np.abs(frames - expected).max() <= BYTE_TOLERANCE
    assert frames.std() > 1, "a flat picture would prove nothing"


def test_image_to_video_is_diffusers(
    session: Session,
    models: dict[str, Any],
    embeds: tuple[PromptEmbeds, PromptEmbeds],
    start: NDArray[np.float32],
) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=session.model.sampling.flow_shift)
    pipeline = SanaImageToVideoPipeline(**models, scheduler=scheduler)
    image = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    reference = run(
        pipeline, start, embeds, image=Image.fromarray(image), prompt=None, output_type="latent"
    )
    inputs = Inputs(noise=start, prompt_embeds=embeds, image=image)
    latents, frames = play(session, request(session, conditioned=True), inputs)
    assert difference(latents, reference) <= LATENTS_TOLERANCE
    assert len(frames) == FRAMES


@pytest.fixture
def causal_session(causal_bundle: Path) -> Session:
    """The same graphs, declared block-causal, in chunks of two latent frames."""
    return Session.open(causal_bundle, threads=1)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_chunks_are_the_published_loop(
    causal_session: Session,
    small_checkpoint: Path,
    embeds: tuple[PromptEmbeds, PromptEmbeds],
    guidance: float,
) -> None:
    """LongSANA's sampling written from its description, with PyTorch doing the arithmetic."""
    session = causal_session
    given = embeds if guidance != 1 else embeds[1:]
    clip = request(
        session, solver="renoise", num_inference_steps=4, guidance_scale=guidance, seed=7,
        num_frames=25,
    )  # fmt: skip
    stream = session.latents(clip, Inputs(prompt_embeds=given))
    first = next(stream)
    allocations = session.graphs.memory.allocations
    chunks = [first, *stream]
    assert session.graphs.memory.allocations == allocations, "nothing after the first chunk"
    assert [list(chunk.frames) for chunk in chunks] == [[0, 1, 2], [3, 4], [5, 6]]
    model = Transformer(session.model.transformer).eval()
    checkpoint = open_checkpoint(small_checkpoint)
    model.load_state_dict({key: checkpoint.transformer.load(key) for key in model.state_dict()})
    for chunk, expected in zip(chunks, published_loop(model, given, guidance), strict=True):
        assert difference(chunk.latents, expected) <= LATENTS_TOLERANCE


@torch.no_grad()
def published_loop(
    model: Transformer, embeds: tuple[PromptEmbeds, ...], guidance: float
) -> Iterator[NDArray[np.float32]]:
    timesteps = (1000.0, 960.0, 889.0, 727.0)
    table = np.linspace(1, 0, 1001)[:-1]
    table = 7 * table / (1 + 6 * table)
    sigmas = [float(table[np.abs(1000 * table - t).argmin()]) for t in timesteps] + [0.0]
    text = torch.from_numpy(np.concatenate([one.hidden_states for one in embeds]))
    mask = torch.from_numpy(np.concatenate([one.attention_mask for one in embeds]))
    batch = len(embeds)

    def gaussian(frames: range, step: int) -> torch.Tensor:
        shape = (model.spec.in_channels, HEIGHT // 8, WIDTH // 8)
        return torch.from_numpy(noise.gaussian(7, frames=frames, frame_shape=shape, step=step))

    def forward(
        x: torch.Tensor, timestep: float, state: list[BlockState] | None, first: int
    ) -> tuple[torch.Tensor, list[BlockState]]:
        times = torch.full((batch, x.shape[2]), timestep)
        return model(x.expand(batch, -1, -1, -1, -1), times, text, mask, state, first)

    state: list[BlockState] | None = None
    for frames in (range(3), range(3, 5), range(5, 7)):
        x = gaussian(frames, 0)
        for index, timestep in enumerate(timesteps):
            velocity, _ = forward(x, timestep, state, frames.start)
            velocity = velocity[:1] + guidance * (velocity[-1:] - velocity[:1])
            x0 = x - sigmas[index] * velocity
            following = sigmas[index + 1]
            x = (1 - following) * x0 + following * gaussian(frames, index + 1)
        _, state = forward(x0, 0.0, state, frames.start)
        yield x0.numpy()
