"""Names of the original ``Wan2.1_VAE.pth``, translated to the diffusers names used here.

The original numbers the layers of a whole half; diffusers groups the decoder's by level. Shapes
are the same.
"""

from __future__ import annotations

import re
from typing import Final

_PARTS: Final = {
    r"^conv1\.": r"quant_conv.",
    r"^conv2\.": r"post_quant_conv.",
    r"^(encoder|decoder)\.conv1\.": r"\1.conv_in.",
    r"^(encoder|decoder)\.head\.0\.": r"\1.norm_out.",
    r"^(encoder|decoder)\.head\.2\.": r"\1.conv_out.",
    r"^(encoder|decoder)\.middle\.0\.": r"\1.mid_block.resnets.0.",
    r"^(encoder|decoder)\.middle\.1\.": r"\1.mid_block.attentions.0.",
    r"^(encoder|decoder)\.middle\.2\.": r"\1.mid_block.resnets.1.",
    r"^encoder\.downsamples\.": r"encoder.down_blocks.",
}
_LAYERS: Final = {
    ".residual.0.": ".norm1.",
    ".residual.2.": ".conv1.",
    ".residual.3.": ".norm2.",
    ".residual.6.": ".conv2.",
    ".shortcut.": ".conv_shortcut.",
}
_UPSAMPLES = re.compile(r"decoder\.upsamples\.(\d+)\.")


def original_to_diffusers(name: str, num_res_blocks: int = 2) -> str:
    """The diffusers name of an original tensor.

    Names that are none of the original's are kept: diffusers' are their own translation, and
    the check of names reports the others.
    """
    for pattern, part in _PARTS.items():
        name = re.sub(pattern, part, name)
    if match := _UPSAMPLES.match(name):
        name = _up_block(int(match[1]), num_res_blocks) + name[match.end() :]
    for old, new in _LAYERS.items():
        name = name.replace(old, new)
    return name


def _up_block(index: int, num_res_blocks: int) -> str:
    """A level of the decoder is ``num_res_blocks + 1`` residual blocks and an upsampling."""
    level, layer = divmod(index, num_res_blocks + 2)
    inner = f"resnets.{layer}" if layer <= num_res_blocks else "upsamplers.0"
    return f"decoder.up_blocks.{level}.{inner}."
