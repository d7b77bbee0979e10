"""Encode training clips once: the transformer is trained on latents, not on pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
import torch
from examples.shapes import clips, model, wan
from examples.shapes.training import join, logger
from examples.shapes.world import NUM_FRAMES, Window

SEED = 3
SHARD = 256


@click.command(help=__doc__)
@click.option("--vae", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--num-clips", default=8192)
@click.option("--num-frames", default=NUM_FRAMES)
@click.option("--batch", default=4)
def main(vae: Path, output: Path, num_clips: int, num_frames: int, batch: int) -> None:
    """Write shards of normalised latents, float16 [SHARD, C, T, h, w]; skip finished ones."""
    rank, world = join()
    autoencoder = model.load_vae(vae)

    def shard(first: int) -> torch.Tensor:
        starts = range(first, min(first + SHARD, num_clips), batch)
        return torch.cat([_latents(autoencoder, start, batch, num_frames) for start in starts])

    write(output, range(rank * SHARD, num_clips, world * SHARD), shard)


def write(folder: Path, firsts: Iterable[int], shard: Callable[[int], torch.Tensor]) -> None:
    """Write the shard that begins at each of ``firsts``, in float16; skip finished ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in firsts:
        path = folder / f"{first:06d}.npy"
        if path.exists():
            continue
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, shard(first).half().numpy())
        partial.replace(path)
        logger.info("%s", path)


def load(folder: Path) -> torch.Tensor:
    """All latents, float16 [N, C, T, h, w]; number i is of scene i."""
    return torch.from_numpy(
        np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])
    )


@torch.no_grad()
def _latents(
    autoencoder: wan.AutoencoderKLWan, first: int, count: int, num_frames: int
) -> torch.Tensor:
    frames = clips.batch(SEED, first, count, Window(num_frames))
    with torch.autocast("cpu", torch.bfloat16):
        mean, _ = wan.encode(autoencoder, torch.from_numpy(frames))
    return wan.normalised(autoencoder, mean).half()


if __name__ == "__main__":
    main()
