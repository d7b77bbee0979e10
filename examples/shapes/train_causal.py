"""Fine-tune the transformer to continue a clip chunk by chunk, in four steps without guidance.

Two kinds of batches take turns:

* First chunks are learned from clips that the bidirectional model sampled, with guidance, in
  twenty steps: what they show is what their prompts say, so that no guidance is needed any more.
* Later chunks are learned from minute-long clips. A batch of them is walked through chunk by
  chunk with the state the model itself left behind. In most of the clips what it commits is its
  own continuation, sampled in four steps and never put right: what a minute of its own errors
  does to a clip is what it learns to mend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
from examples.shapes import clips, encode, samples, sampling
from examples.shapes import model as models
from examples.shapes.training import Muon, Schedule, Training, join
from torch import nn

from sana_rt.export.modules.block import BlockState
from sana_rt.export.modules.transformer import Transformer

SEED = 5


@dataclass(frozen=True)
class Config:
    """Every number of the run."""

    steps: int = 3200
    first_batch: int = 24  # clips a process
    stream_batch: int = 16
    first_share: float = 0.3  # of the steps
    learning_rate: float = 6e-4
    warmup: int = 100
    average: float = 0.998
    own_context: float = 0.75  # the share of clips that the model continues by itself
    context_sigma: float = 0.1  # largest share of noise in a committed chunk
    level_share: float = 0.7  # how often sigma is one of the sampler's four


@click.command(help=__doc__)
@click.option("--sampled", type=click.Path(path_type=Path), required=True)
@click.option("--long-latents", type=click.Path(path_type=Path), required=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/shapes"))
def main(sampled: Path, long_latents: Path, checkpoint: Path, work: Path) -> None:
    """Start from the bidirectional checkpoint; write the causal transformer into it."""
    rank, _ = join()
    torch.manual_seed(SEED)
    config = Config()
    model = models.load(checkpoint, models.CAUSAL)
    prompts = Prompts(
        model.text_encoder.requires_grad_(False), models.load_tokenizer(checkpoint / "tokenizer")
    )
    schedule = Schedule(config.learning_rate, config.steps, config.warmup)
    training = Training(model.transformer, schedule, work / "causal.pt", config.average, Muon)
    torch.manual_seed(SEED + 1000 * (training.step + 1) + rank)
    first = FirstChunk(model.transformer, prompts, encode.load(sampled), config)
    later = LaterChunks(model.transformer, prompts, encode.load(long_latents), config)
    training.run(
        lambda _: first() if torch.rand(()) < config.first_share else later(),
        lambda _: None,
    )
    if rank == 0:
        models.save_causal(checkpoint, training.average.module)


@dataclass
class Prompts:
    """The frozen text encoder."""

    encoder: nn.Module
    tokenizer: sampling.PreTrainedTokenizerFast

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states and mask of prompts."""
        ids, mask = sampling.tokenize(self.tokenizer, texts)
        return self.encoder(ids, mask), mask


@dataclass
class FirstChunk:
    """The loss on the first chunk of a clip, where there is no state yet."""

    student: Transformer
    prompts: Prompts
    latents: torch.Tensor
    config: Config

    def __call__(self) -> dict[str, torch.Tensor]:
        """Predict the velocity to a sampled clip."""
        chosen = torch.randint(len(self.latents), (self.config.first_batch,))
        clean = self.latents[chosen].float()
        noise = torch.randn_like(clean)
        noisy, timestep = _noisy(clean, noise, _sigmas(len(clean), self.config))
        with torch.autocast("cpu", torch.bfloat16):
            text, mask = self.prompts([samples.prompt(int(index)) for index in chosen])
            velocity, _ = self.student(noisy, timestep, text, mask)
        loss = nn.functional.mse_loss(velocity, noise - clean)
        return {"loss": loss, "first": loss.detach() / self.config.first_share}


@dataclass
class LaterChunks:
    """The loss on the next chunk of a batch of long clips; every call goes one chunk on."""

    student: Transformer
    prompts: Prompts
    latents: torch.Tensor
    config: Config
    frame: int = field(default=0, init=False)  # where the chunk to commit begins
    state: list[BlockState] | None = field(default=None, init=False)

    def __call__(self) -> dict[str, torch.Tensor]:
        """Commit one chunk, with gradients, and predict the next one."""
        if self.frame == 0:
            self._begin()
        begin = self.frame + self.context.shape[2]
        clean = self.clips[:, :, begin : begin + models.CHUNK]
        sigma = _sigmas(len(clean), self.config)
        noise = torch.randn_like(clean)
        noisy, timestep = _noisy(clean, noise, sigma)
        with torch.autocast("cpu", torch.bfloat16):
            state = self._commit()
            velocity, _ = self.student(noisy, timestep, *self.text, state, begin)
        loss = nn.functional.mse_loss(velocity, noise - clean)
        self._advance(begin, state, clean)
        return {"loss": loss, "later": loss.detach() / (1 - self.config.first_share)}

    def _begin(self) -> None:
        chosen = torch.randint(len(self.latents), (self.config.stream_batch,))
        self.clips = self.latents[chosen].float()
        draws = torch.randint(1 << 20, (len(chosen),))
        self.text = self.prompts(
            [
                clips.caption(encode.SEED, int(index), int(draw)).text
                for index, draw in zip(chosen, draws, strict=True)
            ]
        )
        self.context = self.clips[:, :, : models.LATENT_FRAMES]
        self.own = torch.rand(len(chosen), 1, 1, 1, 1) < self.config.own_context
        self.state = None

    def _commit(self) -> list[BlockState]:
        sigma = self.config.context_sigma * torch.rand(len(self.context))
        context, _ = _noisy(self.context, torch.randn_like(self.context), sigma)
        timestep = torch.zeros(context.shape[0], context.shape[2])
        state: list[BlockState]
        _, state = self.student(context, timestep, *self.text, self.state, self.frame)
        return state

    def _advance(self, begin: int, state: list[BlockState], clean: torch.Tensor) -> None:
        self.state = [BlockState(*(part.detach() for part in block)) for block in state]
        self.context = torch.where(self.own, self._sample(begin, clean), clean)
        self.frame = begin if begin + 2 * models.CHUNK <= self.clips.shape[2] else 0

    @torch.no_grad()
    def _sample(self, begin: int, clean: torch.Tensor) -> torch.Tensor:
        latents = torch.randn_like(clean)
        for step in sampling.stream_steps():
            timestep = torch.full(clean.shape[:3:2], float(step.timestep))
            with torch.autocast("cpu", torch.bfloat16):
                velocity, _ = self.student(latents, timestep, *self.text, self.state, begin)
            estimate = latents - step.sigma * velocity
            latents = step.b * estimate + step.n * torch.randn_like(clean)
        return latents


def _sigmas(count: int, config: Config) -> torch.Tensor:
    """The sampler's four noise levels, or any."""
    levels = torch.tensor([step.sigma for step in sampling.stream_steps()], dtype=torch.float32)
    chosen = levels[torch.randint(len(levels), (count,))]
    shift = models.SAMPLING.flow_shift
    anywhere = torch.sigmoid(torch.randn(count))
    anywhere = shift * anywhere / (1 + (shift - 1) * anywhere)
    return torch.where(torch.rand(count) < config.level_share, chosen, anywhere)


def _noisy(
    clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents at ``sigma`` [B], and the timesteps [B, T] that say so."""
    spread = _spread(sigma)
    timestep = (1000 * sigma)[:, None].expand(-1, clean.shape[2])
    return (1 - spread) * clean + spread * noise, timestep


def _spread(sigma: torch.Tensor) -> torch.Tensor:
    return sigma.view(-1, 1, 1, 1, 1)


if __name__ == "__main__":
    main()
