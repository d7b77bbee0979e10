"""What the training programs share: logging, learning rate, averaged weights, restarts."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

logger = logging.getLogger("shapes")


def log_to_stdout() -> None:
    """Write progress as plain lines."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s")


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, constant, then linear to zero over the last ``decay`` of the steps."""

    peak: float
    steps: int
    warmup: int
    decay: float = 0.3

    def __call__(self, step: int) -> float:
        """The learning rate of ``step``."""
        up = (step + 1) / self.warmup
        down = (self.steps - step) / (self.decay * self.steps)
        return self.peak * min(1.0, up, down)


def join() -> tuple[int, int]:
    """This process's rank and how many train together (``torchrun``), one thread each.

    Threads of one process wait for each other several hundred times a step, which costs a
    multiple of the work on cores that other programs use too; processes wait once.
    """
    log_to_stdout()
    torch.set_num_threads(1)
    if not distributed.is_torchelastic_launched():
        return 0, 1
    distributed.init_process_group("gloo")
    return distributed.get_rank(), distributed.get_world_size()


def _average_gradients(module: nn.Module) -> None:
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))


class Average:
    """Exponential moving average of a module's weights, with a warm-up of the decay."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards ``module``."""
        decay = min(self.decay, (step + 1) / (step + 10))
        averaged, current = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)


class AdamW(torch.optim.AdamW):
    """AdamW for all weights of a module; the learning rate is set at each step."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.parameters(), betas=(0.9, 0.99), weight_decay=0.0)


class Muon:
    """Muon (Jordan 2024) for a module's matrices and AdamW for what is left.

    Weights of convolutions [out, in, ...] are matrices [out, in · ...]; embeddings, the first
    and the last layer and depthwise convolutions are left to AdamW. docs/log.md compares the two.
    """

    _LEFT_OUT = ("embed_tokens", "patch_embed", "proj_out", "scale_shift_table", "conv_depth")

    def __init__(self, module: nn.Module, weight_decay: float = 0.01) -> None:
        matrices = {
            name: weight
            for name, weight in module.named_parameters()
            if weight.ndim >= 2 and not any(part in name for part in self._LEFT_OUT)
        }
        rest = [weight for name, weight in module.named_parameters() if name not in matrices]
        # torch's Muon takes matrices only: these share their storage with the weights.
        views = [nn.Parameter(weight.data.flatten(1)) for weight in matrices.values()]
        self._views = list(zip(matrices.values(), views, strict=True))
        self._muon = torch.optim.Muon(
            views, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=weight_decay)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [*self._muon.param_groups, *self._adamw.param_groups]

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Forget the gradients of all weights."""
        self._adamw.zero_grad(set_to_none)
        for weight, _ in self._views:
            weight.grad = None

    def step(self) -> None:
        """Update all weights."""
        for weight, view in self._views:
            assert weight.grad is not None
            view.grad = weight.grad.flatten(1)
        self._muon.step()
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])


@dataclass
class Training:
    """A module, its optimizer and its average, saved together so that a run can go on."""

    module: nn.Module
    schedule: Schedule
    path: Path
    decay: float = 0.999
    make_optimizer: Callable[[nn.Module], AdamW | Muon] = AdamW
    step: int = 0
    seconds: float = 0.0
    average: Average = field(init=False)
    optimizer: AdamW | Muon = field(init=False)

    def __post_init__(self) -> None:
        """Set up the optimizer, and continue from ``path`` if it is there."""
        self.average = Average(self.module, self.decay)
        self.optimizer = self.make_optimizer(self.module)
        if self.path.exists():
            self._restore(torch.load(self.path, weights_only=True))

    def run(
        self, loss: Callable[[int], dict[str, torch.Tensor]], watch: Callable[[int], None]
    ) -> None:
        """Take the remaining steps; ``loss(step)`` returns terms, of which "loss" is minimised."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sums: dict[str, float] = {}
        while self.step < self.schedule.steps:
            began = time.monotonic()
            for name, value in self._update(loss).items():
                sums[name] = sums.get(name, 0.0) + value
            self.seconds += time.monotonic() - began
            self.step += 1
            if self.step % 50 == 0 and self.leads:
                terms = " ".join(f"{name} {value / 50:.5f}" for name, value in sums.items())
                logger.info("step %d  %s  %.0f s", self.step, terms, self.seconds)
                sums = {}
            if self.step % 250 == 0 or self.step == self.schedule.steps:
                if self.leads:
                    self._save()
                watch(self.step)

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return not distributed.is_initialized() or distributed.get_rank() == 0

    def _update(self, loss: Callable[[int], dict[str, torch.Tensor]]) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.step)
        terms = loss(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        if distributed.is_initialized():
            _average_gradients(self.module)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.module, self.step)
        return {name: float(value.detach()) for name, value in (*terms.items(), ("norm", norm))}

    def _save(self) -> None:
        state: dict[str, Any] = {
            "module": self.module.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def _restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        logger.info("continuing %s at step %d", self.path, self.step)
