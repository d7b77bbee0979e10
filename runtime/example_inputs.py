"""Seeded inputs of a graph such as it may be given, for comparing two ways to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from sana_rt.manifest import Graph, Plan
from sana_rt.model_spec import ModelSpec
from sana_rt.runtime.backends.buffers import HostArray
from sana_rt.tensors import TensorSpec, resolve

_SEED: Final = 0
_MASKED: Final = -10000.0  # the logit of a word that is not there (docs/numerics.md)
_LATEST: Final = 1000  # the timestep of pure noise


def example_inputs(
    entry: Graph | Plan, dims: Mapping[str, int], model: ModelSpec
) -> dict[str, HostArray]:
    """One array for each input of ``entry``, in float32 or integers."""
    random = np.random.default_rng(_SEED)
    return {
        spec.name: _example(spec, resolve(spec.shape, dims), random, model) for spec in entry.inputs
    }


def _example(
    spec: TensorSpec, shape: tuple[int, ...], random: np.random.Generator, model: ModelSpec
) -> HostArray:
    if spec.dtype == "int64":
        return _integers(spec.name, shape, random, model)
    if spec.dtype == "uint8":
        return random.integers(256, size=shape, dtype=np.uint8)
    if spec.name == "timestep":
        return random.uniform(0, _LATEST, shape).astype(np.float32)
    if spec.name == "text_bias":
        kept = np.arange(shape[-1]) < shape[-1] // 2
        return np.broadcast_to(np.where(kept, 0, _MASKED).astype(np.float32), shape)
    values = random.standard_normal(shape, np.float32)
    return np.abs(values) if spec.name == "state_k" else values  # a sum of relu(k)


def _integers(
    name: str, shape: tuple[int, ...], random: np.random.Generator, model: ModelSpec
) -> HostArray:
    if name == "input_ids":
        return random.integers(model.text.vocab_size, size=shape)
    if name == "attention_mask":  # padding on the right, more of it in later rows
        kept = shape[1] * 3 // 4 - np.arange(shape[0]) * (shape[1] // 4)
        return (np.arange(shape[1]) < kept[:, None]).astype(np.int64)
    return np.arange(shape[0]) + 1  # positions
