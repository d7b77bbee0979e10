"""Timed steps of diffusers' pipeline: one side of :mod:`sana_rt.benchmarks.speed.denoise`."""

from __future__ import annotations

import itertools
import time
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from sana_rt.benchmarks.speed.denoise_ours import start
from sana_rt.export.checkpoint import open_checkpoint


class Diffusers:
    """A checkpoint that plays clips of ``steps`` steps; a turn is one clip, until its latents."""

    def __init__(self, checkpoint: str, steps: int, threads: int) -> None:
        torch.set_num_threads(threads)
        folder = Path(checkpoint)
        spec = open_checkpoint(folder).spec
        library: Any = diffusers  # its classes are typed in parts only
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, about its and numpy's futures
            self._pipeline = library.SanaVideoPipeline(
                tokenizer=None,
                text_encoder=None,
                vae=library.AutoencoderKLWan.from_pretrained(folder / "vae"),
                transformer=library.SanaVideoTransformer3DModel.from_pretrained(
                    folder / "transformer"
                ),
                scheduler=library.DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler"),
            )
        self._pipeline.set_progress_bar_config(disable=True)
        sampling = spec.sampling
        frames = spec.latent_frames(sampling.num_frames)
        size = spec.latent_size(sampling.height, sampling.width)
        noise, negative, positive = start(
            (1, spec.transformer.in_channels, frames, *size),
            (spec.text.max_tokens, spec.transformer.caption_channels),
        )
        mask = torch.ones(1, spec.text.max_tokens, dtype=torch.int64)
        self._arguments: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": sampling.guidance_scale,
            "height": sampling.height,
            "width": sampling.width,
            "frames": sampling.num_frames,
            "latents": torch.from_numpy(noise),
            "prompt_embeds": torch.from_numpy(positive),
            "prompt_attention_mask": mask,
            "negative_prompt_embeds": torch.from_numpy(negative),
            "negative_prompt_attention_mask": mask,
            "negative_prompt": None,
            "use_resolution_binning": False,
            "output_type": "latent",
        }
        self.latents = noise

    def turn(self) -> list[float]:
        """Play the clip; the seconds between the ends of its steps."""
        ends: list[float] = []

        def stepped(_: object, __: int, ___: object, state: dict[str, Any]) -> dict[str, Any]:
            ends.append(time.perf_counter())
            return state

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = self._pipeline(**self._arguments, callback_on_step_end=stepped)
        self.latents = np.asarray(result.frames)
        return [after - before for before, after in itertools.pairwise(ends)]


def play(checkpoint: str, steps: int, threads: int) -> None:
    """One clip, for its memory."""
    Diffusers(checkpoint, steps, threads).turn()
