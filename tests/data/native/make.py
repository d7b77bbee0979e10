"""Writes vectors.json: numbers of the Python runtime that another language must compute, too.

    python tests/data/native/make.py

float32 values are their bits, so that nothing is lost on the way.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sana_rt import geometry
from sana_rt.model_spec import PRESETS, ModelSpec, StreamingSpec
from sana_rt.runtime import noise, solver
from sana_rt.runtime.text import PromptTokenizer, prompt_text

HERE = Path(__file__).parent
TOKENIZER = HERE.parents[2] / "examples/shapes/checkpoints/tokenizer/tokenizer.json"
CAUSAL = PRESETS["longsana-2b-480p"]

PROMPTS = (
    "",
    "a red circle",
    "  a  Red\tcircle\n",
    "一个红色的圆形向右移动，背景是灰色。",
    "😀👩‍👩‍👧 e\u0301 ﬁ ｆｕｌｌ",
    "<bos>a<pad>b<eos><unk>",
    "\u0000\u0007\u200b\ufeff\u00a0x\u3000",
    "it's 3.14, we'll see 1,000 things!!",
    "ΑΣ ΟΔΥΣΣΕΥΣ. Σ ΣΑ İSTANBUL",
)
ALPHABET = "aAéßΣİ 　\t\n.,'’1234½a圆形移动的黑色蓝方红ひ한🙂\u0301\u200d\u0000\u0085<>bos"


def model(chunk_frames: int) -> ModelSpec:
    """LongSANA with chunks of so many latent frames."""
    streaming = StreamingSpec(chunk_frames=chunk_frames)
    return msgspec.structs.replace(CAUSAL, streaming=streaming)


def bits(values: np.ndarray) -> list[int]:
    """The bits of float32 values."""
    return [int(value) for value in values.astype(np.float32).view(np.uint32).ravel()]


def noises() -> list[dict[str, Any]]:
    """Noise at a few addresses."""
    cases = [
        (0, 0, 1, (1, 3, 3), 0),
        (2**64 - 1, 5, 8, (4, 2, 3), 2),
        (2**32 + 7, 1023, 1024, (16, 1, 5), 1000),
    ]
    return [
        {
            "seed": seed,
            "frames": [start, stop],
            "shape": list(shape),
            "step": step,
            "bits": bits(
                noise.gaussian(seed, frames=range(start, stop), frame_shape=shape, step=step)
            ),
        }
        for seed, start, stop, shape, step in cases
    ]


def schedules() -> list[dict[str, Any]]:
    """Timesteps and coefficients of every solver."""
    counted = [
        (name, count, shift, make(count, shift))
        for name, make in (("dpmpp_2m", solver.dpmpp_2m), ("flow_euler", solver.flow_euler))
        for count, shift in ((1, 3.0), (2, 8.0), (20, 3.0), (50, 8.0), (100, 1.0))
    ]
    lists = [(1000.0, 960.0, 889.0, 727.0), (999.5,), (1000.0, 500.0, 0.25)]
    listed = [("renoise", steps, 7.0, solver.renoise(steps, 7.0)) for steps in lists]
    return [
        {
            "solver": name,
            "of": of,
            "flow_shift": shift,
            "timesteps": [step.timestep for step in steps],
            "coefficients": [
                bits(solver.coefficients(step, 4.5, 2, condition_frames=1)) for step in steps
            ],
        }
        for name, of, shift, steps in [*counted, *listed]
    ]


def chunks() -> list[dict[str, Any]]:
    """Chunks of block-causal clips, and the rotary positions of their frames."""
    cases = [(10, 21, 0), (10, 261, 0), (10, 19, 0), (4, 1, 0), (4, 33, 5), (4, 8, 8), (1, 3, 1)]
    found = []
    for size, frames, start in cases:
        cut = geometry.chunk_ranges(model(size), frames, start)
        ranges = [[one.start, one.stop] for one in cut]
        positions = [list(one) for one in cut]
        found.append(
            {"size": size, "latent_frames": frames, "start": start, "chunks": ranges}
            | {"positions": positions}
        )
    return found


def lengths() -> list[dict[str, Any]]:
    """Frames of a number of seconds."""
    cases = [(0.1, 30), (5.0, 16), (60.0, 16), (1e-9, 8), (2.5000001, 16), (0.3, 10), (4.1, 240)]
    return [
        {"seconds": seconds, "fps": fps, "frames": geometry.num_frames(seconds, fps, CAUSAL)}
        for seconds, fps in cases
    ]


def tokens() -> list[dict[str, Any]]:
    """Token ids of texts."""
    spec = msgspec.structs.replace(CAUSAL.text, vocab_size=512)
    tokenizer = PromptTokenizer.from_file(TOKENIZER, spec).tokenizer
    chosen = random.Random(7)
    made = ["".join(chosen.choices(ALPHABET, k=chosen.randint(1, 24))) for _ in range(150)]
    return [{"text": text, "ids": tokenizer.encode(text).ids} for text in (*PROMPTS, *made)]


def texts() -> list[dict[str, Any]]:
    """What becomes of prompts before they are tokens."""
    return [
        {
            "prompt": prompt,
            "motion_score": score,
            "lowercase": lowercase,
            "text": prompt_text(prompt, motion_score=score, lowercase=lowercase),
        }
        for prompt in PROMPTS
        for score, lowercase in ((None, False), (30, True), (0, True))
    ]


def vectors() -> str:
    """The file."""
    made = {
        "noise": noises(),
        "schedules": schedules(),
        "chunks": chunks(),
        "lengths": lengths(),
        "tokens": tokens(),
        "texts": texts(),
    }
    return json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    (HERE / "vectors.json").write_text(vectors(), encoding="utf-8")
