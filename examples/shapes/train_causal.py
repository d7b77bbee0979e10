"""Fine-tune the transformer to continue a clip chunk by chunk, in four steps without guidance.

Two kinds of batches take turns:

* The first chunk of a clip is learned from the bidirectional model: its guided velocity is
  the target, so that guidance is not needed any more.
* Later chunks are learned from minute-long clips. A batch of them is walked through chunk by
  chunk with the state the model itself left behind: what it commits is in part its own
  estimate of the last chunk, and noisy, so that small errors do not grow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
from examples.shapes import clips, encode, sampling
from examples.shapes import model as models
from examples.shapes.training import Schedule, Training, join
from torch import nn

from sana_rt.export.modules.block import BlockState

SEED = 5


@dataclass(frozen=True)
class Config:
    """Every number of the run."""

    steps: int = 3000
    first_batch: int = 24  # clips a process
    stream_batch: int = 24
    first_share: float = 0.3  # of the steps
    learning_rate: float = 5e-4
    warmup: int = 100
    weight_decay: float = 0.01
    average: float = 0.998
    guidance_scale: float = models.SAMPLING.guidance_scale
    own_context: float = 0.5  # how often a committed chunk is the model's own estimate
    context_sigma: float = 0.1  # largest share of noise in a committed chunk
    level_share: float = 0.7  # how often sigma is one of the sampler's four


@click.command(help=__doc__)
@click.option("--latents", type=click.Path(path_type=Path), required=True)
@click.option("--long-latents", type=click.Path(path_type=Path), required=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/shapes"))
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(latents: Path, long_latents: Path, checkpoint: Path, work: Path, output: Path) -> None:
    """Start from the bidirectional checkpoint; write the causal transformer beside it."""
    rank, _ = join()
    torch.manual_seed(SEED)
    config = Config()
    teacher = models.load(checkpoint).requires_grad_(False)
    student = models.load(checkpoint, models.CAUSAL).transformer
    tokenizer = models.load_tokenizer(checkpoint / "tokenizer")
    schedule = Schedule(config.learning_rate, config.steps, config.warmup)
    training = Training(
        student, schedule, work / "causal.pt", config.average, weight_decay=config.weight_decay
    )
    torch.manual_seed(SEED + 1000 * (training.step + 1) + rank)
    first = FirstChunk(student, teacher, tokenizer, encode.load(latents), config)
    later = LaterChunks(student, teacher, tokenizer, encode.load(long_latents), config)
    training.run(
        lambda _: first() if torch.rand(()) < config.first_share else later(),
        lambda _: None,
    )
    if rank == 0:
        models.save_causal(output, training.average.module)


@dataclass
class FirstChunk:
    """The loss on the first chunk of a clip, where there is no state yet."""

    student: models.Transformer
    teacher: models.Model
    tokenizer: sampling.PreTrainedTokenizerFast
    latents: torch.Tensor
    config: Config

    def __call__(self) -> dict[str, torch.Tensor]:
        """The distance from the guided velocity of the bidirectional model."""
        chosen = torch.randint(len(self.latents), (self.config.first_batch,))
        texts = [clips.caption(encode.SEED, int(index), _draw()).text for index in chosen]
        clean = self.latents[chosen].float()
        sigma = _sigmas(len(chosen), self.config)
        noisy, timestep = _noisy(clean, torch.randn_like(clean), sigma)
        with torch.autocast("cpu", torch.bfloat16):
            text, mask = _encode(self.teacher, self.tokenizer, [""] * len(texts) + texts)
            target = self._guided(noisy, timestep, text, mask)
            positive = slice(len(texts), None)
            velocity, _ = self.student(noisy, timestep, text[positive], mask[positive])
        loss = nn.functional.mse_loss(velocity, target)
        return {"loss": loss, "first": loss.detach() / self.config.first_share}

    @torch.no_grad()
    def _guided(
        self, noisy: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        both = torch.cat([noisy, noisy]), torch.cat([timestep, timestep])
        negative, positive = self.teacher.transformer(*both, text, mask)[0].chunk(2)
        return negative + self.config.guidance_scale * (positive - negative)


@dataclass
class LaterChunks:
    """The loss on the next chunk of a batch of long clips; every call goes one chunk on."""

    student: models.Transformer
    teacher: models.Model
    tokenizer: sampling.PreTrainedTokenizerFast
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
        self._advance(begin, state, clean, (noisy - _spread(sigma) * velocity).detach())
        return {"loss": loss, "later": loss.detach() / (1 - self.config.first_share)}

    def _begin(self) -> None:
        chosen = torch.randint(len(self.latents), (self.config.stream_batch,))
        self.clips = self.latents[chosen].float()
        texts = [clips.caption(encode.SEED, int(index), _draw()).text for index in chosen]
        with torch.no_grad():
            self.text = _encode(self.teacher, self.tokenizer, texts)
        self.context = self.clips[:, :, : models.LATENT_FRAMES]
        self.state = None

    def _commit(self) -> list[BlockState]:
        sigma = self.config.context_sigma * torch.rand(len(self.context))
        context, _ = _noisy(self.context, torch.randn_like(self.context), sigma)
        timestep = torch.zeros(context.shape[0], context.shape[2])
        state: list[BlockState]
        _, state = self.student(context, timestep, *self.text, self.state, self.frame)
        return state

    def _advance(
        self, begin: int, state: list[BlockState], clean: torch.Tensor, estimate: torch.Tensor
    ) -> None:
        own = torch.rand(len(clean)).view(-1, 1, 1, 1, 1) < self.config.own_context
        self.context = torch.where(own, estimate, clean)
        self.state = [BlockState(*(part.detach() for part in block)) for block in state]
        self.frame = begin if begin + 2 * models.CHUNK <= self.clips.shape[2] else 0


def _draw() -> int:
    return int(torch.randint(1 << 20, ()))


def _encode(
    model: models.Model, tokenizer: sampling.PreTrainedTokenizerFast, texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = sampling.tokenize(tokenizer, texts)
    return model.text_encoder(ids, mask), mask


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
