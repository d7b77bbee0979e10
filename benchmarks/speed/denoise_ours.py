"""Steps of the runtime on ONNX Runtime, timed: one side of :mod:`sana_rt.benchmarks.speed.denoise`.

Imports what a user of the runtime imports and nothing else, because its memory is measured.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np

from sana_rt.runtime.inputs import Inputs, PromptEmbeds, latents_shape
from sana_rt.runtime.pipeline import Progress
from sana_rt.runtime.request import for_model
from sana_rt.runtime.session import Session


class Ours:
    """A bundle that plays clips of ``steps`` steps; a turn is one clip."""

    def __init__(self, bundle: str, steps: int, threads: int) -> None:
        self._session = Session.open(Path(bundle), threads=threads)
        model = self._session.model
        self._request = for_model(model, {"prompt": "", "num_inference_steps": steps})
        noise, negative, positive = start(
            latents_shape(self._request, model),
            (model.text.max_tokens, model.transformer.caption_channels),
        )
        length = np.ones((1, model.text.max_tokens), np.int64)
        embeds = tuple(PromptEmbeds(each, length) for each in (negative, positive))
        self._inputs = Inputs(noise=noise, prompt_embeds=embeds)
        self.latents = noise

    def turn(self) -> list[float]:
        """Play the clip; the seconds between the ends of its steps."""
        ends: list[float] = []

        def progress(state: Progress) -> None:
            if state.stage == "denoise":
                ends.append(time.perf_counter())

        (chunk,) = self._session.latents(self._request, self._inputs, progress=progress)
        self.latents = chunk.latents
        return [after - before for before, after in itertools.pairwise(ends)]


def start(
    shape: tuple[int, ...], text: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise f32 ``shape`` and the embeddings [1, S, Ct] of two prompts, the same for both sides."""
    random = np.random.default_rng(0)
    return (
        random.standard_normal(shape, np.float32),
        random.standard_normal((1, *text), np.float32),
        random.standard_normal((1, *text), np.float32),
    )


def play(bundle: str, steps: int, threads: int) -> None:
    """One clip, for its memory."""
    Ours(bundle, steps, threads).turn()
