"""Sample clips from the bidirectional model once: the causal one learns their first chunks."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from examples.shapes import clips, encode, sampling
from examples.shapes import model as models
from examples.shapes.training import join

SEED = 6
SHARD = 128
_SEEDS = SEED << 32  # the noise of sample number i has the seed _SEEDS + i


@click.command(help=__doc__)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--num-clips", default=4096)
def main(checkpoint: Path, output: Path, num_clips: int) -> None:
    """Write shards of latents, float16 [SHARD, C, T, h, w]; skip finished ones."""
    rank, world = join()
    model = models.load(checkpoint).eval()
    tokenizer = models.load_tokenizer(checkpoint / "tokenizer")

    def shard(first: int) -> torch.Tensor:
        prompts = [prompt(index) for index in range(first, first + SHARD)]
        with torch.autocast("cpu", torch.bfloat16):
            return sampling.sample(model, tokenizer, prompts, _SEEDS + first)

    encode.write(output, range(rank * SHARD, num_clips, world * SHARD), shard)


def prompt(index: int) -> str:
    """What sample number ``index`` was asked for."""
    return clips.caption(SEED, index).text


if __name__ == "__main__":
    main()
