"""The texts a checkpoint was trained or is published with: instructions and a negative prompt.

The text encoder is given an instruction (the "complex human instruction", CHI) in front of
every prompt, and the transformer learned from what the encoder made of the two together, so
each text is an input of the model and exact to the character, its last space included.

Sources, both under the Apache License 2.0: NVlabs/Sana, ``configs/sana_video_config`` (the
field ``text_encoder.chi_prompt``, the same in the 480p, 720p and LongSANA configurations) and
``inference_video_scripts/inference_sana_video.py`` (``negative_prompt``); huggingface/diffusers,
``SanaVideoPipeline.__call__`` (the default of ``complex_human_instruction``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sana_rt import documents
from sana_rt.errors import SanaRTError, UsageError

#: Speaks of images, being inherited from the image model, but it is what the published training
#: configurations of SANA-Video name; so it, not diffusers' newer text, is the default.
ORIGINAL: Final = "\n".join(
    (
        'Given a user prompt, generate an "Enhanced prompt" that provides detailed visual '
        "descriptions suitable for image generation. Evaluate the level of detail in the user "
        "prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, "
        "textures, and spatial relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly "
        "without overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a "
        "round shape, sleeping peacefully on a warm sunny windowsill, surrounded by pots of "
        "blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, "
        "featuring glowing street lamps, a diverse crowd of people in colorful clothing, and a "
        "double-decker bus passing by towering glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including "
        "any additional commentary or evaluations:",
        "User Prompt: ",
    )
)

#: What diffusers' pipelines put before a prompt unless told otherwise.
DIFFUSERS: Final = "\n".join(
    (
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual "
        "descriptions suitable for video generation. Evaluate the level of detail in the user "
        "prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, "
        "textures, motion, and temporal relationships to create vivid and dynamic scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly "
        "without overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat slowly settling "
        "into a curled position, peacefully falling asleep on a warm sunny windowsill, with "
        "gentle sunlight filtering through surrounding pots of blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, "
        "featuring glowing street lamps gradually lighting up, a diverse crowd of people in "
        "colorful clothing walking past, and a double-decker bus smoothly passing by towering "
        "glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including "
        "any additional commentary or evaluations:",
        "User Prompt: ",
    )
)

#: The negative prompt of the published sampling script and of diffusers' example.
NEGATIVE_PROMPT: Final = (
    "A chaotic sequence with misshapen, deformed limbs in heavy motion blur, sudden "
    "disappearance, jump cuts, jerky movements, rapid shot changes, frames out of sync, "
    "inconsistent character shapes, temporal artifacts, jitter, and ghosting effects, creating "
    "a disorienting visual experience."
)

INSTRUCTIONS: Final = {"original": ORIGINAL, "diffusers": DIFFUSERS, "none": ""}


def instruction(name_or_path: str) -> str:
    """The instruction called ``original``, ``diffusers`` or ``none``, or the text of a UTF-8 file.

    One newline at a file's end is an editor's and is dropped; other white space is kept.
    Raises :class:`UsageError` for neither a name nor a readable text file.
    """
    if name_or_path in INSTRUCTIONS:
        return INSTRUCTIONS[name_or_path]
    try:
        return documents.read_bytes(Path(name_or_path)).decode().removesuffix("\n")
    except (SanaRTError, ValueError) as error:
        raise UsageError(
            f"The instruction {name_or_path!r} cannot be read: {error}.",
            expected=f"one of {', '.join(INSTRUCTIONS)}, or a text file in UTF-8.",
        ) from error
