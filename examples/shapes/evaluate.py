"""Judge a checkpoint without the runtime: by the loops in `sampling.py`, or by diffusers.

Every clip starts from the noise that `examples.shapes.judge` gives it, so that clips can be
compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import numpy as np
import torch
from diffusers import SanaVideoPipeline
from examples.shapes import judge, sampling, world
from examples.shapes import model as models
from examples.shapes.judge import Frames
from examples.shapes.world import Language

from sana_rt.runtime.images import write_png

BATCH = 8


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--sampler", type=click.Choice(["torch", "diffusers", "stream"]), default="torch")
@click.option("--lang", type=click.Choice(["en", "zh"]), default="en")
@click.option("--prompts", type=int, help="Only so many, evenly picked.")
@click.option("--latent-frames", default=121, help="Of a stream; the last 10 s are judged.")
@click.option("--seed", default=0)
@click.option("--sheet", type=click.Path(path_type=Path))
def main(
    checkpoint: Path,
    *,
    sampler: str,
    lang: Language,
    prompts: int | None,
    latent_frames: int,
    seed: int,
    sheet: Path | None,
) -> None:
    """Print the figures of `examples.shapes.judge` as JSON."""
    torch.set_num_threads(1)
    chosen = judge.held_out(prompts)
    texts = [world.prompt(subject, background, lang) for subject, background in chosen]
    if sampler == "torch":
        played = _torch(checkpoint, texts, seed)
    elif sampler == "diffusers":
        played = _diffusers(checkpoint, texts, seed)
    else:
        played = _stream(checkpoint, texts, seed, latent_frames)
    clips = tuple(clip[-judge.JUDGED_SECONDS * world.FPS :] for clip in played)
    readings = tuple(judge.read(clip) for clip in clips)
    verdict = judge.Verdict(tuple(subject for subject, _ in chosen), readings, clips)
    if sheet is not None:
        write_png(sheet, judge.contact_sheet(clips))
    figures = msgspec.json.encode({**verdict.scores, **verdict.steadiness})
    click.echo(msgspec.json.format(figures, indent=2).decode())


def _torch(checkpoint: Path, texts: list[str], seed: int) -> Iterator[Frames]:
    model = models.load(checkpoint)
    tokenizer = models.load_tokenizer(checkpoint / "tokenizer")
    vae = models.load_vae(checkpoint / "vae")
    for first in range(0, len(texts), BATCH):
        latents = sampling.sample(model, tokenizer, texts[first : first + BATCH], seed + first)
        yield from sampling.frames(vae, latents)


def _diffusers(checkpoint: Path, texts: list[str], seed: int) -> Iterator[Frames]:
    pipeline = SanaVideoPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        videos = sampling.diffusers(pipeline, batch, seed + first, output_type="np")
        yield from (np.asarray(videos) * 255).round().astype(np.uint8)


def _stream(checkpoint: Path, texts: list[str], seed: int, latent_frames: int) -> Iterator[Frames]:
    model = models.load_causal(checkpoint)
    tokenizer = models.load_tokenizer(checkpoint / "tokenizer")
    vae = models.load_vae(checkpoint / "vae")
    for first in range(0, len(texts), BATCH):
        ids, mask = sampling.tokenize(tokenizer, texts[first : first + BATCH])
        with torch.no_grad():
            text = model.text_encoder(ids, mask)
        latents = sampling.stream(model.transformer, text, mask, latent_frames, seed + first)
        for clip in latents.split(1):
            yield sampling.frames(vae, clip)[0]


if __name__ == "__main__":
    main()
