"""Train the small Wan autoencoder: ``python -m examples.shapes.train_vae --help``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKLWan
from examples.shapes import clips, wan
from examples.shapes.training import Schedule, Training, join, logger
from examples.shapes.world import Array
from torch.nn import functional

from sana_rt.runtime.images import write_png

SEED = 1


@dataclass(frozen=True)
class Config:
    """Every number of the run."""

    steps: int = 8000
    batch: int = 4  # crops a process
    learning_rate: float = 1.5e-3
    warmup: int = 100
    kl_weight: float = 3e-4
    crop: int = 32  # pixels: a quarter of the clip around the shape teaches as much
    crop_frames: tuple[int, int] = (9, 17)  # in turns, the longer ones half as many
    encoder_steps: int = 5000  # after them the latents stay as they are
    # then the decoder learns from whole clips and long crops: what its causal convolutions
    # remember of the beginning must not matter in a clip of any length
    whole_batch: int = 2
    long_frames: int = 49
    edge_weight: float = 2.0  # of the error's differences between neighbours: corners stay sharp
    latent_noise: float = 0.1  # standard deviation of the error the decoder learns to bear
    statistics_clips: int = 256


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/shapes"))
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/shapes/vae"))
def main(work: Path, output: Path) -> None:
    """Train, measure the latents' mean and standard deviation, write diffusers' layout."""
    rank, world = join()
    torch.manual_seed(SEED)
    config = Config()
    vae = wan.whole_clip(wan.build())
    schedule = Schedule(config.learning_rate, config.steps, config.warmup)
    training = Training(vae, schedule, work / "vae.pt", decay=0.99)
    torch.manual_seed(SEED + 1000 * (training.step + 1) + rank)
    averaged = training.average.module

    def watch(step: int) -> None:
        _watch(averaged, work / f"vae-{step:05d}.png")
        if step == config.encoder_steps:  # clips can be encoded while the decoder learns on
            _write(vae, config, output)

    training.run(
        lambda step: _loss(vae, config, step, step * world + rank),
        watch if rank == 0 else lambda _: None,
    )
    if rank == 0:
        _write(averaged, config, output)


def _loss(vae: AutoencoderKLWan, config: Config, step: int, turn: int) -> dict[str, torch.Tensor]:
    encoder_learns = step < config.encoder_steps
    target = torch.from_numpy(_clips(config, step, turn))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.set_grad_enabled(encoder_learns):
            mean, log_variance = wan.encode(vae, target)
        deviation = torch.exp(log_variance / 2) if encoder_learns else config.latent_noise
        error = wan.decode(vae, mean + deviation * torch.randn_like(mean)) - target
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    l1, mse = error.abs().mean(), error.square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    weight = 0.0 if encoder_learns else config.edge_weight
    loss = l1 + mse + config.kl_weight * kl + weight * edges
    return {"loss": loss, "l1": l1, "mse": mse, "edges": edges, "kl": kl}


def _clips(config: Config, step: int, turn: int) -> Array:
    first = turn * config.batch
    longer = step % 2
    if step < config.encoder_steps:
        count = config.batch // (1 + longer)
        return clips.crops(SEED, first, count, config.crop_frames[longer], config.crop)
    if longer:
        return clips.crops(SEED, first, config.whole_batch, config.long_frames, config.crop)
    return clips.batch(SEED, first, config.whole_batch)


@torch.no_grad()
def _watch(vae: AutoencoderKLWan, path: Path) -> None:
    """Write a sheet: pairs of rows, the clip above its reconstruction."""
    target = torch.from_numpy(clips.batch(SEED + 1, 0, 6))
    shown = wan.decode(vae, wan.encode(vae, target)[0]).clamp(-1, 1)
    psnr = 10 * torch.log10(4 / functional.mse_loss(shown, target))
    logger.info("watch  psnr %.2f dB", psnr)
    rows = torch.stack([target, shown], 1).flatten(0, 1)[:, :, ::2]  # [12, 3, 9, H, W]
    pixels = ((rows + 1) * 127.5).round().byte().permute(0, 3, 2, 4, 1).flatten(0, 1).flatten(1, 2)
    write_png(path, pixels.numpy())


@torch.no_grad()
def _write(vae: AutoencoderKLWan, config: Config, output: Path) -> None:
    batches = [
        wan.encode(vae, torch.from_numpy(clips.batch(SEED + 2, first, 16)))[0]
        for first in range(0, config.statistics_clips, 16)
    ]
    std, mean = torch.std_mean(torch.cat(batches), dim=(0, 2, 3, 4))
    logger.info("latents  mean %s  std %s", mean.tolist(), std.tolist())
    final = wan.build(mean.tolist(), std.tolist())
    final.load_state_dict(vae.state_dict())
    final.half().save_pretrained(output)


if __name__ == "__main__":
    main()
