"""Fine-tune the transformer to continue a clip chunk by chunk, in four steps without guidance.

Two kinds of batches take turns:

* First chunks are learned from clips that the bidirectional model sampled, with guidance, in
  twenty steps: what they show is what their prompts say, so that no guidance is needed any more.
* Later chunks are learned from clips of the data, chunk by chunk, with the state that the model
  itself left behind. Most of them it continues by itself, sampled in four steps as it will be
  played. What comes next is then read from the place of the clip that looks most like what the
  model has made, so that it learns to mend a shape, and not to be where it cannot know it
  should be.
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

    steps: int = 7500
    first_batch: int = 24  # clips a process
    stream_batch: int = 16
    first_share: float = 0.25  # of the steps
    learning_rate: float = 6e-4
    warmup: int = 100
    average: float = 0.998
    frames: int = 121  # latent ones of a minute
    own_context: float = 0.8  # the share of clips that the model continues by itself
    context_sigma: float = 0.1  # largest share of noise in a committed chunk


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
        sigma, timestep = _levels(clean)
        noisy = _noisy(clean, noise, sigma)
        with torch.autocast("cpu", torch.bfloat16):
            text, mask = self.prompts([samples.prompt(int(index)) for index in chosen])
            velocity, _ = self.student(noisy, timestep, text, mask)
        loss = nn.functional.mse_loss(velocity, noise - clean)
        return {"loss": loss, "first": loss.detach() / self.config.first_share}


@dataclass
class LaterChunks:
    """The loss on the next chunk of a batch of endless clips; every call goes one chunk on."""

    student: Transformer
    prompts: Prompts
    latents: torch.Tensor
    config: Config
    frames: int = field(default=0, init=False)  # latent ones behind the context
    state: list[BlockState] | None = field(default=None, init=False)

    def __call__(self) -> dict[str, torch.Tensor]:
        """Commit one chunk, with gradients, and predict the next one."""
        if self.frames == 0:
            self._begin()
        clean = following(self.clips, self.context)
        noise = torch.randn_like(clean)
        sigma, timestep = _levels(clean)
        noisy = _noisy(clean, noise, sigma)
        end = self.frames + self.context.shape[2]
        with torch.autocast("cpu", torch.bfloat16):
            state = self._commit()
            velocity, _ = self.student(noisy, timestep, *self.text, state, end)
        loss = nn.functional.mse_loss(velocity, noise - clean)
        self.state = [BlockState(*(part.detach() for part in block)) for block in state]
        self.frames = end
        self.context = torch.where(self.own, self._sample(clean), clean)
        if end >= self.config.frames:
            self.frames = 0
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
        self.own = torch.rand(len(chosen), 1, 1, 1, 1) < self.config.own_context
        self.state = None
        clean = self.clips[:, :, : models.LATENT_FRAMES]
        self.context = torch.where(self.own, self._sample(clean, first=2), clean)

    def _commit(self) -> list[BlockState]:
        sigma = self.config.context_sigma * torch.rand(len(self.context))
        context = _noisy(self.context, torch.randn_like(self.context), sigma)
        timestep = torch.zeros(context.shape[0], context.shape[2])
        state: list[BlockState]
        _, state = self.student(context, timestep, *self.text, self.state, self.frames)
        return state

    def _sample(self, clean: torch.Tensor, first: int = 0) -> torch.Tensor:
        """What the sampler makes of the next chunk, from its step ``first`` on."""

        def fresh(_: int) -> torch.Tensor:
            return torch.randn_like(clean)

        sigma = torch.full((len(clean),), float(sampling.stream_steps()[first].sigma))
        latents = _noisy(clean, fresh(first), sigma)
        with torch.autocast("cpu", torch.bfloat16):
            return sampling.denoise(
                self.student,
                latents,
                self.text,
                state=self.state,
                begin=self.frames,
                fresh=fresh,
                first=first,
            )


def following(latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """The chunk of each clip behind the place that looks most like the end of its context.

    All are [B, C, T, h, w]. The expert of imitation learning starts from where the student is
    (DAgger, Ross et al. 2011): a shape that lags behind goes on from there, and one that is
    blurred, doubled or of a wrong colour is mended. A clip that repeats itself never ends. The
    first latent frame is passed over, because it stands for one frame and the others for four.
    """
    chunk = models.CHUNK
    windows = latents.unfold(2, chunk, 1)[:, :, 1:-chunk]  # [B, C, places, h, w, chunk]
    last = context[:, :, -chunk:].permute(0, 1, 3, 4, 2).unsqueeze(2)
    places = (windows - last).square().mean((1, 3, 4, 5)).argmin(1)
    return torch.stack(
        [
            clip[:, begin : begin + chunk]
            for clip, begin in zip(latents, (places + 1 + chunk).tolist(), strict=True)
        ]
    )


def _levels(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One of the sampler's four levels for each clip: sigmas [B] and timesteps [B, T]."""
    steps = sampling.stream_steps()
    levels = torch.tensor([(step.sigma, step.timestep) for step in steps], dtype=torch.float32)
    sigma, timestep = levels[torch.randint(len(steps), (len(latents),))].unbind(1)
    return sigma, timestep[:, None].expand(-1, latents.shape[2])


def _noisy(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Latents at ``sigma`` [B]."""
    sigma = sigma.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * clean + sigma * noise


if __name__ == "__main__":
    main()
