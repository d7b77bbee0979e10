"""Prompts over time against the published chunk loop, PyTorch doing the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.export.modules.block import BlockState
from sana_rt.export.modules.transformer import Transformer
from sana_rt.runtime import noise, prompts
from sana_rt.runtime.inputs import Embeds
from sana_rt.runtime.pipeline import Chunk
from sana_rt.runtime.prompt_schedule import PromptSchedule, TimedPrompt
from sana_rt.runtime.session import Session

HEIGHT, WIDTH = 32, 48
TIMESTEPS = (1000.0, 625.5)
PROMPTS = ("a red circle", "a red circle", "a blue square", "a green triangle")  # by chunk

# As in `test_pipeline`: one forward may differ by 2e-5 of the largest value, below 1e-6 is seen.
TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(causal_bundle: Path, small_checkpoint: Path) -> Transformer:
    """The bundle's transformer as a module."""
    transformer = Transformer(Session.open(causal_bundle, threads=1).model.transformer).eval()
    weights = open_checkpoint(small_checkpoint).transformer
    transformer.load_state_dict({key: weights.load(key) for key in transformer.state_dict()})
    return transformer


@pytest.mark.parametrize("latent_frames", [8, 9], ids=["equal chunks", "a longer first"])
@pytest.mark.parametrize("recommit", [False, True])
def test_prompts_over_time_are_the_published_loop(
    causal_bundle: Path,
    model: Transformer,
    monkeypatch: pytest.MonkeyPatch,
    latent_frames: int,
    recommit: bool,
) -> None:
    """With ``recommit``, the last chunk is run once more from the state before it."""
    known: dict[str, Embeds] = {}
    chunks: list[Chunk] = []
    _spy(monkeypatch, known, chunks)
    session = Session.open(causal_bundle, threads=1)
    first = 2 + latent_frames % 2
    starts = [0, *range(first, latent_frames, 2)]
    seconds = [(4 * start - 3) / 8 for start in starts]
    scenes = tuple(TimedPrompt(seconds[index], PROMPTS[index]) for index in (2, 3))
    request = session.request(
        prompt=PROMPTS[0], height=HEIGHT, width=WIDTH, num_frames=4 * latent_frames - 3, seed=7,
        timesteps=TIMESTEPS, flow_shift=7.0,
    )  # fmt: skip
    list(session.stream(request, schedule=PromptSchedule(scenes, recommit=recommit)))
    ranges = [range(*pair) for pair in zip(starts, [*starts[1:], latent_frames], strict=True)]
    assert [chunk.frames for chunk in chunks] == ranges
    expected = published_loop(model, ranges, [known[text] for text in PROMPTS], recommit=recommit)
    for chunk, latents in zip(chunks, expected, strict=True):
        difference = np.abs(chunk.latents - latents).max() / np.abs(latents).max()
        assert difference <= TOLERANCE


def _spy(monkeypatch: pytest.MonkeyPatch, known: dict[str, Embeds], chunks: list[Chunk]) -> None:
    """Keep the embeddings that a stream uses, and the latents that it makes."""
    from sana_rt.runtime.pipeline import Pipeline

    encode, denoised = prompts.encode, Pipeline.chunks

    def keep_embeds(*arguments: Any) -> dict[str, Embeds]:
        known.update(encode(*arguments))
        return known

    def keep_chunks(*arguments: Any) -> Iterator[Chunk]:
        for chunk in denoised(*arguments):
            chunks.append(chunk)
            yield chunk

    monkeypatch.setattr(prompts, "encode", keep_embeds)
    monkeypatch.setattr(Pipeline, "chunks", keep_chunks)


@torch.no_grad()
def published_loop(
    model: Transformer, ranges: list[range], embeds: list[Embeds], *, recommit: bool
) -> Iterator[NDArray[np.float32]]:
    table = np.linspace(1, 0, 1001)[:-1]
    table = 7 * table / (1 + 6 * table)
    sigmas = [float(table[np.abs(1000 * table - t).argmin()]) for t in TIMESTEPS] + [0.0]

    def gaussian(frames: range, step: int) -> torch.Tensor:
        shape = (model.spec.in_channels, HEIGHT // 8, WIDTH // 8)
        return torch.from_numpy(noise.gaussian(7, frames=frames, frame_shape=shape, step=step))

    def forward(
        x: torch.Tensor, timestep: float, text: Embeds, state: list[BlockState] | None, first: int
    ) -> tuple[torch.Tensor, list[BlockState]]:
        (prompt,) = text
        times = torch.full((1, x.shape[2]), timestep)
        hidden_states = torch.from_numpy(prompt.hidden_states)
        mask = torch.from_numpy(prompt.attention_mask)
        return model(x, times, hidden_states, mask, state, first)

    state: list[BlockState] | None = None
    before, x0 = state, torch.empty(0)
    for index, (frames, text) in enumerate(zip(ranges, embeds, strict=True)):
        if recommit and index and text is not embeds[index - 1]:
            _, state = forward(x0, 0.0, text, before, ranges[index - 1].start)
        x = gaussian(frames, 0)
        for step, timestep in enumerate(TIMESTEPS):
            velocity, _ = forward(x, timestep, text, state, frames.start)
            x0 = x - sigmas[step] * velocity
            x = (1 - sigmas[step + 1]) * x0 + sigmas[step + 1] * gaussian(frames, step + 1)
        before = state
        _, state = forward(x0, 0.0, text, before, frames.start)
        yield x0.numpy()
