"""Schedules of the solvers against their published numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sana_rt.runtime import solver

# Timesteps of the released pipelines for 20 steps and a shift of 8.
DPMPP_20 = (
    999, 993, 986, 978, 969, 959, 948, 936, 922, 907, 888, 867, 841, 811, 773, 727, 666, 585, 470,
    296,
)  # fmt: skip

# Sigmas of LongSANA's four steps from its table with a shift of 7, to six digits.
LONGSANA = {1000.0: 1.0, 960.0: 0.959957, 889.0: 0.889153, 727.0: 0.727410}


def test_timesteps_of_dpmpp_are_truncated() -> None:
    steps = solver.dpmpp_2m(20, 8.0)
    assert tuple(step.timestep for step in steps) == DPMPP_20
    assert steps[-1].sigma == pytest.approx(0.296, abs=1e-3)


def test_euler_ends_below_the_smallest_shifted_sigma() -> None:
    """The scheduler shifts its smallest sigma twice: 1/1000 becomes 0.0602, not 0.0079."""
    steps = solver.flow_euler(50, 8.0)
    timesteps = [step.timestep for step in steps]
    assert timesteps[:3] == pytest.approx([1000, 997.424, 994.753], abs=1e-3)
    assert timesteps[-3:] == pytest.approx([289.377, 188.355, 60.207], abs=1e-3)


def test_renoising_takes_the_nearest_sigma_of_the_table() -> None:
    steps = solver.renoise(tuple(LONGSANA), 7.0)
    assert [step.timestep for step in steps] == list(LONGSANA)
    assert [step.sigma for step in steps] == pytest.approx(list(LONGSANA.values()), abs=5e-7)
    following = [step.sigma for step in steps[1:]]
    assert [step.n for step in steps] == [*following, 0.0]
    assert [step.b for step in steps] == [1 - sigma for sigma in following] + [1.0]
    assert all(step.a == step.c == 0 for step in steps)


@pytest.mark.parametrize("schedule", [solver.dpmpp_2m, solver.flow_euler])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_last_step_ends_at_the_sample(
    schedule: Callable[[int, float], tuple[solver.Step, ...]], count: int
) -> None:
    steps = schedule(count, 8.0)
    assert len(steps) == count
    assert (steps[-1].a, steps[-1].b, steps[-1].c, steps[-1].n) == (0, 1, 0, 0)
    sigmas = [step.sigma for step in steps]
    assert sigmas == sorted(sigmas, reverse=True)
    assert all(np.isfinite([step.a, step.b, step.c, step.sigma]).all() for step in steps)


def test_constant_sample_is_kept_exactly() -> None:
    """If x0 never changes, any solver moves along the straight line to it."""
    x0, noise = 2.0, -1.0
    for schedule in (solver.dpmpp_2m, solver.flow_euler):
        steps = schedule(12, 8.0)
        x = (1 - steps[0].sigma) * x0 + steps[0].sigma * noise
        for step, following in zip(steps, [*(s.sigma for s in steps[1:]), 0.0], strict=True):
            x = step.a * x + step.b * x0
            assert x == pytest.approx((1 - following) * x0 + following * noise, abs=1e-12)


def test_coefficients_of_condition_frames() -> None:
    step = solver.dpmpp_2m(5, 8.0)[2]
    rows = solver.coefficients(step, 6.0, 3, condition_frames=1)
    assert rows.shape == (3, 6)
    assert rows.dtype == np.float32
    expected = np.float32([6.0, step.sigma, step.a, step.b, step.c, step.n])
    np.testing.assert_array_equal(rows[1:], [expected, expected])
    np.testing.assert_array_equal(rows[0, 2:], [1, 0, 0, 0])
    np.testing.assert_array_equal(
        solver.timesteps(step, 3, condition_frames=1), [0, step.timestep, step.timestep]
    )
