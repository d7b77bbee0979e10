"""Noise: the generator's published answers, the distribution, and independence of the cut."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sana_rt.runtime import noise

SHAPE = (16, 12, 20)  # C, H, W of a latent frame
ONES = 0xFFFFFFFF

# Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

# Float64 has 53 bits; the polynomials are truncated below 1e-16 and sum about ten roundings.
POLYNOMIAL_TOLERANCE = 1e-15

# Of 10^6 samples the mean has standard deviation 1e-3, the variance sqrt(2) 1e-3, the third
# moment sqrt(15) 1e-3 and the fourth sqrt(96) 1e-3; the seed is fixed, so five are plenty.
SAMPLES = 1_000_000
SIGMAS = 5


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    first, *others = counter
    words = noise.philox((np.array([first], np.uint32), *others), key)
    assert words.tolist() == [list(expected)]


def test_bits_of_the_latents_are_what_the_text_specifies() -> None:
    """Straight from the specification, one element at a time, with numpy's own functions."""
    seed, frame, step, stream = 0x0123456789ABCDEF, 7, 3, 1
    latents = noise.gaussian(seed, frames=range(7, 8), frame_shape=SHAPE, step=step, stream=stream)
    key = (seed % 2**32, seed // 2**32)
    for element in (0, 1, 2, 3, 4, 1001, 3839):
        words = noise.philox((np.array([element // 4], np.uint32), frame, step, stream), key)[0]
        p, q = words.reshape(2, 2)[element % 4 // 2].astype(np.float64)
        radius = np.sqrt(-2 * np.log((p + 0.5) / 2**32))
        angle = 2 * np.pi * (q + 0.5) / 2**32
        expected = radius * (np.sin(angle) if element % 2 else np.cos(angle))
        # one unit in the last place of float32: numpy's functions may round to its neighbour
        assert latents.reshape(-1)[element] == pytest.approx(expected, rel=2**-23, abs=1e-15)


def test_latents_of_a_seed_never_change() -> None:
    """A published seed must give the same video in every release and in every language."""
    latents = noise.gaussian(42, frames=range(2), frame_shape=SHAPE)
    assert [value.hex() for value in latents.reshape(-1)[:4].tolist()] == GOLDEN_FIRST
    assert hashlib.sha256(latents.astype("<f4").tobytes()).hexdigest() == GOLDEN_SHA256


# noise.gaussian(42, frames=range(2), frame_shape=(16, 12, 20)), this implementation.
GOLDEN_FIRST = [
    "-0x1.f0bcb80000000p-1",
    "0x1.8d59d00000000p-3",
    "-0x1.3c51a40000000p+0",
    "0x1.ec86760000000p+0",
]
GOLDEN_SHA256 = "926782c7226f9a63225ff748ee1da525f9d035084a8d93b8dd53225f6a102e97"


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    start=st.integers(0, 2**20),
    cut=st.integers(0, 5),
    step=st.integers(0, 1000),
)
def test_noise_does_not_depend_on_the_cut(seed: int, start: int, cut: int, step: int) -> None:
    whole = range(start, start + 5)
    parts = [
        noise.gaussian(seed, frames=frames, frame_shape=(3, 2, 5), step=step)
        for frames in (whole[:cut], whole[cut:])
    ]
    expected = noise.gaussian(seed, frames=whole, frame_shape=(3, 2, 5), step=step)
    np.testing.assert_array_equal(np.concatenate(parts, axis=2), expected)


def test_every_part_of_the_address_counts() -> None:
    """Seed (both words), frame, step and stream each give other noise."""
    base = {"seed": 5, "frame": 1, "step": 2, "stream": 3}
    changes = ({}, {"seed": 6}, {"seed": 5 + 2**32}, {"frame": 2}, {"step": 3}, {"stream": 4})
    seen = set()
    for change in changes:
        at = base | change
        frames = range(at["frame"], at["frame"] + 1)
        latents = noise.gaussian(
            at["seed"], frames=frames, frame_shape=SHAPE, step=at["step"], stream=at["stream"]
        )
        seen.add(latents.tobytes())
    assert len(seen) == len(changes)


def test_moments_and_distribution_are_those_of_a_gaussian() -> None:
    frames = -(-SAMPLES // np.prod(SHAPE))
    values = noise.gaussian(1, frames=range(frames), frame_shape=SHAPE).astype(np.float64)
    values = values.reshape(-1)[:SAMPLES]
    for power, expected, deviation in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        allowed = SIGMAS * np.sqrt(deviation / SAMPLES)
        assert np.mean(values**power) == pytest.approx(expected, abs=allowed), power
    assert stats.kstest(values, "norm").pvalue > 1e-3
    neighbours = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(neighbours) < SIGMAS / np.sqrt(SAMPLES)


def test_logarithm_sine_and_cosine_are_accurate() -> None:
    rng = np.random.default_rng(0)
    edges = [k * 2**29 + d for k in range(8) for d in (-1, 0, 1)]
    q = np.array([*edges, *rng.integers(0, 2**32, 100_000)], np.int64) % 2**32
    cosine, sine = noise._turn(q.astype(np.uint32))
    angle = 2 * np.pi * ((q + 0.5) / 2**32)
    np.testing.assert_allclose(cosine, np.cos(angle), rtol=0, atol=POLYNOMIAL_TOLERANCE)
    np.testing.assert_allclose(sine, np.sin(angle), rtol=0, atol=POLYNOMIAL_TOLERANCE)
    uniform = (q + 0.5) / 2**32
    np.testing.assert_allclose(noise._log(uniform), np.log(uniform), rtol=POLYNOMIAL_TOLERANCE)
