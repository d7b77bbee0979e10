"""The solver graph's module against its formula in float64."""

from __future__ import annotations

import numpy as np
import torch

from sana_rt.export.modules.solver import SolverStep

#: Ten float32 operations in a row on values below 200, each off by at most 2^-24 of them.
TOLERANCE = 1e-4

SHAPE = (2, 4, 3, 5, 6)  # batch, channels, frames, height, width


def test_formula() -> None:
    rng = np.random.default_rng(0)
    tensors = [rng.standard_normal(SHAPE).astype(np.float32) for _ in range(5)]
    coefficients = rng.uniform(-3, 7, (SHAPE[2], 6)).astype(np.float32)
    actual = SolverStep()(*map(torch.from_numpy, [*tensors, coefficients]))

    latents, negative, positive, previous, noise = (x.astype(np.float64) for x in tensors)
    wanted = np.empty((2, *SHAPE))
    for frame, (guidance, sigma, a, b, c, n) in enumerate(coefficients.astype(np.float64)):
        at = (slice(None), slice(None), frame)
        velocity = negative[at] + guidance * (positive[at] - negative[at])
        sample = latents[at] - sigma * velocity
        wanted[(0, *at)] = (
            a * latents[at] + b * sample + c * (sample - previous[at]) + n * noise[at]
        )
        wanted[(1, *at)] = sample
    assert np.abs(wanted).max() < 200
    for output, exact in zip(actual, wanted, strict=True):
        assert output.dtype == torch.float32
        np.testing.assert_allclose(output.numpy(), exact, atol=TOLERANCE, rtol=0)


def test_a_frame_given_as_condition_keeps_its_value() -> None:
    tensors = [torch.randn(SHAPE) for _ in range(5)]
    coefficients = torch.randn(SHAPE[2], 6)
    coefficients[0, 2:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    latents_out, _ = SolverStep()(*tensors, coefficients)
    assert torch.equal(latents_out[:, :, 0], tensors[0][:, :, 0])
    assert not torch.isclose(latents_out[:, :, 1:], tensors[0][:, :, 1:]).all()
