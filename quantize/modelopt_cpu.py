"""NVIDIA's ModelOpt on a CPU: it decides what calibration makes of inputs.

Importing this file gives ModelOpt's operator for NVFP4, which it has for GPUs only, a kernel for
CPUs. The kernel rounds as :mod:`sana_rt.quantize.nvfp4` does, bit for bit.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from typing import Any, Final

import numpy.typing as npt
import torch
from torch import Tensor, nn

from sana_rt.quantize import nvfp4
from sana_rt.quantize.minifloat import E2M1, E4M3, Float32Array
from sana_rt.quantize.nvfp4 import BLOCK

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for CUDA and for optional packages
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

Array = npt.NDArray[Any]

#: E2M1 codes, and E4M3 scales for blocks, computed from the values.
NVFP4: Final = {
    "num_bits": (2, 1),
    "block_sizes": {-1: BLOCK, "type": "dynamic", "scale_bits": (4, 3)},
}
_OPERATOR: Final = "tensorrt::dynamic_block_quantize_op"  # PyTorch's, of ModelOpt
_FORMATS: Final = (4, 2, 8, 4)  # bits and exponent bits of E2M1 and of E4M3
_CHUNK: Final = 1 << 18  # values that are rounded at once; their temporaries stay in a cache


def largest_magnitudes(
    batches: Iterable[Mapping[str, Array]], channel_scales: Mapping[str, Float32Array | None]
) -> dict[str, float]:
    """ModelOpt's max calibration of inputs that have names.

    ``batches`` hold finite values [..., K] by name and are read once. ``channel_scales`` has
    all names, and what the channels [K] of an input are multiplied by beforehand, or None.
    """
    quantizers = {name: TensorQuantizer(QuantizerAttributeConfig()) for name in channel_scales}
    for name, scales in channel_scales.items():
        if scales is not None:
            quantizers[name].pre_quant_scale = torch.from_numpy(scales)

    def play(_: nn.Module) -> None:
        for batch in batches:
            for name, values in batch.items():
                quantizers[name](torch.from_numpy(values))

    mtq.calibrate(nn.ModuleList(quantizers.values()), "max", play)
    return {name: float(quantizer.amax) for name, quantizer in quantizers.items()}


def awq_lite(weight: Float32Array, samples: Float32Array) -> Float32Array:
    """What AWQ multiplies the input channels of a layer in NVFP4 by, f32 [K].

    ModelOpt tries eleven ways to move magnitude between ``weight`` [N, K], which it overwrites,
    and the input, of which ``samples`` [T, K] are finite values; it takes the one with the
    smallest error of the output. The scales are rounded to bfloat16.
    """
    n, k = weight.shape
    linear = nn.Linear(k, n, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    config = {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": NVFP4},
            {"quantizer_name": "*input_quantizer", "cfg": NVFP4},
        ],
        "algorithm": {"method": "awq_lite"},
    }
    given = torch.from_numpy(samples)
    with torch.no_grad(), redirect_stdout(io.StringIO()):  # it reports what it does there
        made = mtq.quantize(linear, config, lambda module: module(given))
    scales: Tensor = made.input_quantizer.pre_quant_scale
    return scales.to(torch.bfloat16).float().numpy()


def round_to_nvfp4(x: Tensor, block: int, amax: Tensor, *formats: int) -> Tensor:
    """``x`` [..., K] in NVFP4 and back, by the rules for weights.

    The global scale is that of ``amax``. Raises NotImplementedError for formats other than
    NVFP4, which ModelOpt's operator has, too.
    """
    if (block, formats) != (BLOCK, _FORMATS):
        raise NotImplementedError(f"blocks of {block}, formats {formats}: NVFP4 is all there is")
    scale = float(nvfp4.global_scale(float(amax.amax())))
    values = x.float().contiguous().view(-1, BLOCK)
    out = torch.empty_like(values)
    parts = _CHUNK // BLOCK
    for source, target in zip(values.split(parts), out.split(parts), strict=True):
        target.copy_(_round_blocks(source, scale))
    return out.view(x.shape).to(x.dtype)


def _round_blocks(blocks: Tensor, scale: float) -> Tensor:
    """Blocks f32 [..., 16] in NVFP4 and back."""
    wanted = blocks.abs().amax(-1, keepdim=True) / (E2M1.max * torch.tensor(scale))
    wanted = torch.where(wanted == 0, 1, wanted).clamp(E4M3.smallest, E4M3.max)
    steps = wanted.to(torch.float8_e4m3fn).float() * scale
    scaled = (blocks / steps).clamp(-E2M1.max, E2M1.max)
    magnitudes = scaled.abs()
    # Added to these, a float32 has no digits below 1/2, 1 and 2, E2M1's steps.
    shift = torch.where(magnitudes < 2, 2.0**22, torch.where(magnitudes < 4, 2.0**23, 2.0**24))
    return ((magnitudes + shift) - shift).copysign(blocks) * steps


_SPACE, _, _NAME = _OPERATOR.partition("::")
_LIBRARY: Final = torch.library.Library(_SPACE, "IMPL")  # the kernel goes when this goes
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # that it takes the place of another one
    _LIBRARY.impl(_NAME, round_to_nvfp4, "CPU", allow_override=True)
