"""Solvers as numbers: each computes a schedule of steps, and a step is six coefficients.

The arithmetic on tensors is the ``solver`` graph's (docs/architecture.md); every solver here
is linear in the latents, the estimate of x0, the previous estimate, and noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TRAIN_TIMESTEPS: Final = 1000
SIGMA_MIN: Final = 1 / TRAIN_TIMESTEPS


@dataclass(frozen=True)
class Step:
    """One denoising step: what the network is told, and how the latents move.

    ``sample = latents − sigma · velocity`` estimates x0; the next latents are
    ``a · latents + b · sample + c · (sample − previous sample) + n · noise``.
    """

    timestep: float  # in 0..1000, what the `timestep` graph is given
    sigma: float
    a: float
    b: float
    c: float = 0.0
    n: float = 0.0


def dpmpp_2m(num_inference_steps: int, flow_shift: float) -> tuple[Step, ...]:
    """DPM-Solver++(2M) for flow matching: midpoint, data prediction, last step to sigma 0.

    With alpha = 1 − sigma, lambda = ln(alpha / sigma), h = lambda' − lambda, r = h_before / h:
    ``x' = sigma'/sigma · x + alpha' (1 − e^−h) · (x0 + (x0 − x0_before) / 2r)``, first order on
    the first and the last step. Lu et al. 2022, arXiv 2211.01095, algorithm 2; the schedule is
    that of diffusers' DPMSolverMultistepScheduler with ``use_flow_sigmas``, whose timesteps
    are truncated to integers.
    """
    noise_levels = _shift(1 - np.linspace(1, SIGMA_MIN, num_inference_steps + 1), flow_shift)
    sigmas = np.append(noise_levels[:0:-1], 0.0)
    steps = []
    h_before = math.nan
    for sigma, sigma_next in _pairs(sigmas):
        timestep = math.trunc(TRAIN_TIMESTEPS * sigma)
        if sigma_next == 0:
            steps.append(Step(timestep, sigma, a=0.0, b=1.0))
            break
        h = _log_snr(sigma_next) - _log_snr(sigma)
        b = -(1 - sigma_next) * math.expm1(-h)
        c = b * h / (2 * h_before) if steps else 0.0
        steps.append(Step(timestep, sigma, a=sigma_next / sigma, b=b, c=c))
        h_before = h
    return tuple(steps)


def flow_euler(num_inference_steps: int, flow_shift: float) -> tuple[Step, ...]:
    """Euler's method on the flow, ``x' = x + (sigma' − sigma) · velocity``.

    The schedule is that of diffusers' FlowMatchEulerDiscreteScheduler, which shifts its
    smallest sigma twice; timesteps are fractional.
    """
    sigma_min = float(_shift(np.array(SIGMA_MIN), flow_shift))
    sigmas = np.append(_shift(np.linspace(1, sigma_min, num_inference_steps), flow_shift), 0.0)
    return tuple(
        Step(TRAIN_TIMESTEPS * sigma, sigma, a=sigma_next / sigma, b=1 - sigma_next / sigma)
        for sigma, sigma_next in _pairs(sigmas)
    )


def renoise(timesteps: Sequence[float], flow_shift: float) -> tuple[Step, ...]:
    """LongSANA's few-step sampling: estimate x0, then add fresh noise of the next level.

    ``x' = (1 − sigma') · x0 + sigma' · noise``; the last step ends at x0. A timestep's sigma
    is the nearest entry of the shifted table of 1000 sigmas the distillation used.
    """
    table = _shift(np.linspace(1, 0, TRAIN_TIMESTEPS + 1)[:-1], flow_shift)
    nearest = [np.argmin(np.abs(TRAIN_TIMESTEPS * table - timestep)) for timestep in timesteps]
    sigmas = np.append(table[nearest], 0.0)
    return tuple(
        Step(timestep, sigma, a=0.0, b=1 - sigma_next, n=sigma_next)
        for timestep, (sigma, sigma_next) in zip(timesteps, _pairs(sigmas), strict=True)
    )


def coefficients(
    step: Step, guidance_scale: float, frames: int, *, condition_frames: int = 0
) -> NDArray[np.float32]:
    """The solver graph's ``coefficients`` [frames, 6]: guidance, sigma, a, b, c, n.

    The first ``condition_frames`` are given, not denoised: they keep their latents.
    """
    rows = np.tile([guidance_scale, step.sigma, step.a, step.b, step.c, step.n], (frames, 1))
    rows[:condition_frames, 2:] = (1.0, 0.0, 0.0, 0.0)
    return rows.astype(np.float32)


def timesteps(step: Step, frames: int, *, condition_frames: int = 0) -> NDArray[np.float32]:
    """Timestep of each latent frame [frames]; 0 for frames that are given."""
    row = np.full(frames, step.timestep, np.float32)
    row[:condition_frames] = 0
    return row


def _shift(sigmas: Array, flow_shift: float) -> Array:
    """Move sigmas towards 1: ``s·sigma / (1 + (s − 1)·sigma)``, Esser et al. 2024, eq. 23."""
    return flow_shift * sigmas / (1 + (flow_shift - 1) * sigmas)


def _log_snr(sigma: float) -> float:
    return math.log1p(-sigma) - math.log(sigma)


def _pairs(sigmas: Array) -> list[tuple[float, float]]:
    return list(itertools.pairwise(float(sigma) for sigma in sigmas))
