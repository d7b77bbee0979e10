"""Plain PyTorch sampling loops: to watch training, and as a reference for the runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, SanaVideoPipeline
from examples.shapes import wan, world
from examples.shapes.judge import Frames
from examples.shapes.model import (
    CHUNK,
    LATENT_FRAMES,
    SAMPLING,
    STREAMING,
    TEXT,
    TRANSFORMER,
    Model,
    Transformer,
)
from transformers import PreTrainedTokenizerFast

from sana_rt.export.modules.block import BlockState
from sana_rt.model_spec import SamplingSpec
from sana_rt.runtime import solver
from sana_rt.runtime.noise import gaussian as addressed

LATENT_SIZE = world.SIZE // 8


def tokenize(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask i64 [B, N], padded on the right to the longest."""
    tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask


@torch.no_grad()
def sample(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    seed: int = 0,
    sampling: SamplingSpec = SAMPLING,
) -> torch.Tensor:
    """Normalised latents [B, C, T, h, w] of prompts, by DPM-Solver++ with guidance.

    Prompt number i has the noise of ``seed`` + i, as the runtime draws it.
    """
    count = len(prompts)
    ids, mask = tokenize(tokenizer, [""] * count + list(prompts))
    text = model.text_encoder(ids, mask)
    latents = noise(range(seed, seed + count), range(LATENT_FRAMES))
    previous = torch.zeros_like(latents)
    for step in solver.dpmpp_2m(sampling.num_inference_steps, sampling.flow_shift):
        timestep = torch.full((2 * count, LATENT_FRAMES), float(step.timestep))
        velocity, _ = model.transformer(torch.cat([latents, latents]), timestep, text, mask)
        negative, positive = velocity.chunk(2)
        velocity = negative + sampling.guidance_scale * (positive - negative)
        estimate = latents - step.sigma * velocity
        latents = step.a * latents + step.b * estimate + step.c * (estimate - previous)
        previous = estimate
    return latents


def diffusers(
    pipeline: SanaVideoPipeline, prompts: Sequence[str], seed: int = 0, *, output_type: str
) -> Any:
    """What diffusers' pipeline makes of the same prompts and noise as :func:`sample`."""
    return pipeline(
        prompt=list(prompts),
        negative_prompt="",
        height=world.SIZE,
        width=world.SIZE,
        frames=world.NUM_FRAMES,
        num_inference_steps=SAMPLING.num_inference_steps,
        guidance_scale=SAMPLING.guidance_scale,
        latents=noise(range(seed, seed + len(prompts)), range(LATENT_FRAMES)),
        use_resolution_binning=False,
        max_sequence_length=TEXT.max_tokens,
        complex_human_instruction=[],
        output_type=output_type,
    ).frames


def noise(seeds: Sequence[int], frames: range, step: int = 0) -> torch.Tensor:
    """The runtime's noise of clips, [len(seeds), C, len(frames), h, w]."""
    shape = (TRANSFORMER.in_channels, LATENT_SIZE, LATENT_SIZE)
    clips = [addressed(seed, frames=frames, frame_shape=shape, step=step) for seed in seeds]
    return torch.from_numpy(np.concatenate(clips))


def stream_steps() -> tuple[solver.Step, ...]:
    """The four steps of a chunk."""
    return solver.renoise(STREAMING.timesteps, STREAMING.flow_shift)


@torch.no_grad()
def stream(
    transformer: Transformer,
    text: torch.Tensor,
    mask: torch.Tensor,
    latent_frames: int,
    seed: int = 0,
) -> torch.Tensor:
    """Normalised latents [B, C, latent_frames, h, w], chunk by chunk, as LongSANA samples.

    The state is read-only while a chunk is denoised, and moves on with a pass at timestep 0.
    Prompt number i has the noise of ``seed`` + i, as the runtime draws it.
    """
    seeds = range(seed, seed + len(text))
    chunks: list[torch.Tensor] = []
    state: list[BlockState] | None = None
    begin, end = 0, min(latent_frames, CHUNK + latent_frames % CHUNK)
    while begin < latent_frames:
        fresh = partial(noise, seeds, range(begin, end))
        latents = denoise(
            transformer, fresh(0), (text, mask), state=state, begin=begin, fresh=fresh
        )
        _, state = transformer(latents, _timestep(latents, 0), text, mask, state, begin)
        chunks.append(latents)
        begin, end = end, end + CHUNK
    return torch.cat(chunks, dim=2)


@torch.no_grad()
def denoise(
    transformer: Transformer,
    latents: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
    *,
    state: list[BlockState] | None,
    begin: int,
    fresh: Callable[[int], torch.Tensor],
    first: int = 0,
) -> torch.Tensor:
    """The chunk that begins at frame ``begin``, from its noisy ``latents`` [B, C, T, h, w].

    Step number ``first`` (of :func:`stream_steps`, from 0) finds them at its own noise level;
    ``fresh(k)`` is the noise after k steps. ``text`` is hidden states and mask.
    """
    for number, step in enumerate(stream_steps()[first:], first + 1):
        timestep = _timestep(latents, step.timestep)
        velocity, _ = transformer(latents, timestep, *text, state, begin)
        estimate = latents - step.sigma * velocity
        latents = step.a * latents + step.b * estimate + step.n * fresh(number)
    return latents


def _timestep(latents: torch.Tensor, value: float) -> torch.Tensor:
    """One timestep for all frames [B, T]."""
    return torch.full(latents.shape[:3:2], float(value))


@torch.no_grad()
def frames(vae: AutoencoderKLWan, latents: torch.Tensor) -> Frames:
    """RGB frames u8 [B, T, H, W, 3] of normalised latents."""
    clip = wan.decode(vae, wan.denormalised(vae, latents)).clamp(-1, 1)
    pixels = ((clip + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1)
    return np.ascontiguousarray(pixels.numpy())
