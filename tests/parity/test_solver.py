"""Solvers against diffusers' schedulers, step by step over whole trajectories."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray

from sana_rt.export.modules.solver import SolverStep
from sana_rt.runtime import solver

Array = NDArray[np.float32]
Update = Callable[[Array, Array, Array, NDArray[np.float32]], tuple[Array, Array]]

SHAPE = (1, 4, 3, 5, 6)  # B, C, T, H, W

# Relative to the largest latent. Float32 has 6e-8; 50 steps of about five roundings each, in
# two orders of evaluation, add up like a random walk to 6e-8 * sqrt(2 * 250) = 1.3e-6 at worst
# and were seen at 7e-7. The demand is 1e-6.
TRAJECTORY_TOLERANCE = 1e-6
# diffusers keeps sigmas in float32 and computes the smallest of the Euler scheduler from one
# that was rounded already, four roundings of 6e-8; its timesteps are 1000 sigmas.
SIGMA_TOLERANCE = 2.4e-7
TIMESTEP_TOLERANCE = 1e-4

# diffusers' DPM-Solver converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def in_numpy(latents: Array, velocity: Array, previous: Array, rows: Array) -> tuple[Array, Array]:
    """The solver graph's formula (docs/architecture.md) in float32."""
    _, sigma, a, b, c, _ = (rows[:, i].reshape(1, 1, -1, 1, 1) for i in range(6))
    sample = latents - sigma * velocity
    return a * latents + b * sample + c * (sample - previous), sample


def in_the_module(
    latents: Array, velocity: Array, previous: Array, rows: Array
) -> tuple[Array, Array]:
    tensors = (latents, velocity, velocity, previous, np.zeros_like(latents), rows)
    out, sample = SolverStep()(*map(torch.from_numpy, tensors))
    return out.numpy(), sample.numpy()


def velocity_field() -> Callable[[Array, float], Array]:
    """A smooth, nonlinear stand-in for the transformer."""
    weights = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32) / 2

    def velocity(latents: Array, timestep: float) -> Array:
        mixed = np.tanh(np.einsum("ij,bjthw->bithw", weights, latents))
        return (latents - mixed * np.float32(0.3 + timestep / 1500)).astype(np.float32)

    return velocity


def dpmpp(shift: float) -> DPMSolverMultistepScheduler:
    """The scheduler of the released pipelines."""
    return DPMSolverMultistepScheduler(
        flow_shift=shift, use_flow_sigmas=True, prediction_type="flow_prediction"
    )


def euler(shift: float) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


CASES = [
    pytest.param(make, steps, count, shift, id=f"{steps.__name__}-{count}-shift{shift:g}")
    for make, steps in ((dpmpp, solver.dpmpp_2m), (euler, solver.flow_euler))
    for count, shift in ((50, 8.0), (50, 3.0), (20, 7.0), (3, 8.0), (2, 8.0), (1, 8.0))
]


@pytest.mark.parametrize("update", [in_numpy, in_the_module])
@pytest.mark.parametrize(("make", "schedule", "count", "shift"), CASES)
def test_trajectory_is_diffusers(
    make: Callable[[float], DPMSolverMultistepScheduler | FlowMatchEulerDiscreteScheduler],
    schedule: Callable[[int, float], tuple[solver.Step, ...]],
    count: int,
    shift: float,
    update: Update,
) -> None:
    """Every latent of the way, each side feeding on its own."""
    theirs, ours = make(shift), schedule(count, shift)
    theirs.set_timesteps(count)
    np.testing.assert_allclose(
        [step.sigma for step in ours], theirs.sigmas[:-1], rtol=SIGMA_TOLERANCE
    )
    np.testing.assert_allclose(
        [step.timestep for step in ours], theirs.timesteps, atol=TIMESTEP_TOLERANCE
    )
    velocity = velocity_field()
    latents = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    reference, previous = torch.from_numpy(latents), np.zeros_like(latents)
    for timestep, step in zip(theirs.timesteps, ours, strict=True):
        output = torch.from_numpy(velocity(reference.numpy(), float(timestep)))
        reference = theirs.step(output, timestep, reference, return_dict=False)[0]
        rows = solver.coefficients(step, 1.0, SHAPE[2])
        latents, previous = update(latents, velocity(latents, step.timestep), previous, rows)
        error = np.abs(latents - reference.numpy()).max() / np.abs(reference.numpy()).max()
        assert error <= TRAJECTORY_TOLERANCE, step


def test_frames_given_as_condition_stay_and_the_others_move_alone() -> None:
    """Image-to-video in diffusers steps frames 1.. only and puts frame 0 back."""
    count = 10
    scheduler = euler(8.0)
    scheduler.set_timesteps(count)
    velocity = velocity_field()
    start = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    reference, latents, previous = torch.from_numpy(start), start, np.zeros_like(start)
    for timestep, step in zip(scheduler.timesteps, solver.flow_euler(count, 8.0), strict=True):
        output = torch.from_numpy(velocity(reference.numpy(), float(timestep)))
        moved = scheduler.step(output[:, :, 1:], timestep, reference[:, :, 1:], return_dict=False)[
            0
        ]
        reference = torch.cat([reference[:, :, :1], moved], dim=2)
        rows = solver.coefficients(step, 1.0, SHAPE[2], condition_frames=1)
        latents, previous = in_the_module(latents, velocity(latents, step.timestep), previous, rows)
        np.testing.assert_array_equal(latents[:, :, 0], start[:, :, 0])
    error = np.abs(latents - reference.numpy()).max() / np.abs(latents).max()
    assert error <= TRAJECTORY_TOLERANCE
