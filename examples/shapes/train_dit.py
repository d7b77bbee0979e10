"""Train the transformer and the text encoder together, by flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import torch
from examples.shapes import clips, encode, judge, sampling, world
from examples.shapes import model as models
from examples.shapes.training import Average, Muon, Schedule, Training, join, logger
from torch import nn

from sana_rt.runtime.images import write_png

SEED = 4


@dataclass(frozen=True)
class Config:
    """Every number of the run."""

    steps: int = 6000
    batch: int = 32  # clips a process
    learning_rate: float = 2e-3
    warmup: int = 200
    average: float = 0.998
    caption_dropout: float = 0.1  # for guidance: the empty prompt, encoded like any other
    flow_shift: float = models.SAMPLING.flow_shift
    watched_prompts: int = 24
    watch_every: int = 500


@click.command(help=__doc__)
@click.option("--latents", type=click.Path(path_type=Path), required=True)
@click.option("--vae", type=click.Path(path_type=Path), required=True)
@click.option("--tokenizer", type=click.Path(path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/shapes"))
@click.option("--output", type=click.Path(path_type=Path), default=Path("out/shapes/checkpoint"))
@click.option("--start", type=click.Path(path_type=Path), help="A checkpoint to train on from.")
def main(
    *, latents: Path, vae: Path, tokenizer: Path, work: Path, output: Path, start: Path | None
) -> None:
    """Train, watch prompts being followed, write diffusers' layout.

    An interrupted run goes on from what it saved in ``work``.
    """
    rank, ranks = join()
    torch.manual_seed(SEED)
    config = Config()
    model = models.load(start) if start else models.Model()
    schedule = Schedule(config.learning_rate, config.steps, config.warmup)
    training = Training(model, schedule, work / "dit.pt", config.average, Muon)
    torch.manual_seed(SEED + 1000 * (training.step + 1) + rank)
    batches = Batches(encode.load(latents), models.load_tokenizer(tokenizer), config)
    watch = Watch(models.load_vae(vae), batches.tokenizer, config, work, training.average)
    training.run(
        lambda step: flow_matching(model, *batches(step * ranks + rank), config),
        watch if rank == 0 else lambda _: None,
    )
    if rank == 0:
        averaged = training.average.module
        assert isinstance(averaged, models.Model)
        models.save(output, averaged, vae, tokenizer)


@dataclass
class Batches:
    """Latents and captions in an order that is drawn anew every time round."""

    latents: torch.Tensor
    tokenizer: sampling.PreTrainedTokenizerFast
    config: Config

    def __call__(self, turn: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents f32, token ids, mask of turn number ``turn``."""
        per_round = len(self.latents) // self.config.batch
        time_round, position = divmod(turn, per_round)
        order = torch.randperm(
            len(self.latents), generator=torch.Generator().manual_seed(time_round)
        )
        chosen = order[position * self.config.batch :][: self.config.batch]
        captions = [clips.caption(encode.SEED, int(index), time_round).text for index in chosen]
        dropped = torch.rand(len(captions)) < self.config.caption_dropout
        captions = ["" if drop else text for drop, text in zip(dropped, captions, strict=True)]
        return self.latents[chosen].float(), *sampling.tokenize(self.tokenizer, captions)


def flow_matching(
    model: models.Model,
    latents: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    config: Config,
) -> dict[str, torch.Tensor]:
    """The error of the velocity noise - x0 at sigmas of a shifted logit-normal distribution."""
    sigma = torch.sigmoid(torch.randn(len(latents)))
    sigma = config.flow_shift * sigma / (1 + (config.flow_shift - 1) * sigma)
    noise = torch.randn_like(latents)
    spread = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - spread) * latents + spread * noise
    timestep = (1000 * sigma)[:, None].expand(-1, latents.shape[2])
    with torch.autocast("cpu", torch.bfloat16):
        text = model.text_encoder(ids, mask)
        velocity, _ = model.transformer(noisy, timestep, text, mask)
    return {"loss": nn.functional.mse_loss(velocity, noise - latents)}


@dataclass
class Watch:
    """Samples held-out prompts with the averaged weights and lets the judge read them."""

    vae: sampling.AutoencoderKLWan
    tokenizer: sampling.PreTrainedTokenizerFast
    config: Config
    work: Path
    average: Average

    def __call__(self, step: int) -> None:
        """Log accuracies of English and Chinese prompts, and write a contact sheet."""
        if step % self.config.watch_every:
            return
        chosen = judge.held_out(self.config.watched_prompts)
        model = self.average.module
        assert isinstance(model, models.Model)
        prompts = [
            world.prompt(subject, background, "zh" if index % 2 else "en")
            for index, (subject, background) in enumerate(chosen)
        ]
        shown = sampling.frames(self.vae, sampling.sample(model, self.tokenizer, prompts))
        readings = [judge.read(clip) for clip in shown]
        scores = judge.score(readings, [subject for subject, _ in chosen])
        accuracies = " ".join(f"{name} {score.fraction:.2f}" for name, score in scores.items())
        logger.info("watch  %s", accuracies)
        write_png(self.work / f"dit-{step:05d}.png", judge.contact_sheet(shown[:12]))


if __name__ == "__main__":
    main()
