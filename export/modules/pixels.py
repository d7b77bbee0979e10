"""What an autoencoder says and what a picture holds."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(frames: Tensor) -> Tensor:
    """[B, T, 3, H, W] -> u8 [B, T, H, W, 3]: -1 and below is 0, 1 and above is 255."""
    unit = (frames.float().clamp(-1, 1) + 1) / 2
    # The cast comes last: TensorRT has bytes as inputs and outputs only.
    return (unit * 255).round().permute(0, 1, 3, 4, 2).to(torch.uint8)
