"""From a prompt to the text the transformer sees: tokens in, selected hidden states out.

In the order of a generation::

    tokenizer = PromptTokenizer.from_file(bundle.path("tokenizer.json"), model.text)
    positive = tokenizer.encode(prompt_text(prompt, motion_score=30), instruction=True)
    negative = tokenizer.encode(prompt_text(negative_prompt), instruction=False)
    # for each: text_encoder(input_ids, attention_mask) -> hidden_states [1, length, Ct]
    hidden_states, attention_mask = select(hidden_states, positive)  # [1, S, Ct], [1, S]

The rule is that of SANA-Video's own sampling script and of diffusers' ``encode_prompt``: an
instruction of n tokens goes before the prompt, the sequence is cut or padded on the right to
n + S - 2 tokens, and BOS with the last S - 1 positions is what the transformer sees.

Padding is never run. The encoder is causal, so no token sees the padding behind it. And the
transformer adds -10000 to the logits of padded positions: exp() of less than -104 is exactly
0 in float32, so they would need logits 9,896 above BOS's to count. Queries and keys are
normalised over D = 2240 channels, which bounds a difference of logits by 2 D w / sqrt(112) =
423 w, w the largest product of the two norms' weights: exact for all w < 23. So a short
prompt costs the encoder its own tokens only, and what follows them is filled with zeros.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from sana_rt import tokenizer_file
from sana_rt.errors import RequestError
from sana_rt.model_spec import TextSpec


class PromptTruncatedWarning(UserWarning):
    """A prompt is too long; ``tokens`` were left out, which spell ``text``."""

    def __init__(self, tokens: int, text: str) -> None:
        self.tokens = tokens
        self.text = text
        plural = "s" if tokens > 1 else ""
        super().__init__(f"The prompt is too long by {tokens} token{plural}. Left out: {text!r}")


@dataclass(frozen=True, eq=False)
class TokenizedPrompt:
    """One prompt as the text encoder takes it, without padding.

    ``input_ids`` and ``attention_mask`` (all ones) are i64 [1, length]; ``keep`` i64 [S] are
    the positions of the *padded* sequence that the transformer sees.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    keep: NDArray[np.int64]
    truncated_tokens: int = 0
    truncated_text: str = ""

    @property
    def length(self) -> int:
        """Tokens given to the text encoder."""
        return self.input_ids.size


@dataclass(frozen=True)
class PromptTokenizer:
    """A Gemma tokenizer with the instruction that goes before a prompt."""

    tokenizer: Tokenizer
    spec: TextSpec

    @staticmethod
    def from_file(path: Path, spec: TextSpec) -> PromptTokenizer:
        """Read ``tokenizer.json``; raises :class:`TokenizerError` if damaged or not ``spec``'s."""
        return PromptTokenizer(tokenizer_file.read(path, spec), spec)

    @cached_property
    def instruction_tokens(self) -> int:
        """Tokens of the instruction alone, BOS included."""
        return len(self.tokenizer.encode(self.spec.instruction).ids)

    def max_length(self, *, instruction: bool) -> int:
        """Most tokens the text encoder is given; n + S - 2 after an instruction, else S.

        The instruction ends in a space that usually joins the prompt's first token; that
        token and BOS are the two.
        """
        if instruction and self.spec.instruction:
            return self.instruction_tokens + self.spec.max_tokens - 2
        return self.spec.max_tokens

    def encode(self, text: str, *, instruction: bool) -> TokenizedPrompt:
        """Tokenize a prompt (with ``instruction``) or a negative prompt (without).

        Warns with :class:`PromptTruncatedWarning` if the end of the text does not fit.
        """
        if instruction:
            text = self.spec.instruction + text
        encoding = self._tokens(text)
        limit = self.max_length(instruction=instruction)
        input_ids = np.array([encoding.ids[:limit]], dtype=np.int64)
        lost = len(encoding.ids) - input_ids.shape[1]
        lost_text = text[encoding.offsets[limit][0] :] if lost else ""
        if lost:
            warnings.warn(PromptTruncatedWarning(lost, lost_text), stacklevel=2)
        return TokenizedPrompt(
            input_ids, np.ones_like(input_ids), self._keep(limit), lost, lost_text
        )

    def _tokens(self, text: str) -> Encoding:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"The prompt is not valid Unicode at character {error.start}.",
                expected="text in UTF-8.",
                remedy="check the encoding of the terminal or file the prompt comes from.",
            ) from error
        return self.tokenizer.encode(text)

    def _keep(self, limit: int) -> NDArray[np.int64]:
        last = np.arange(limit - self.spec.max_tokens + 1, limit, dtype=np.int64)
        return np.concatenate([np.zeros(1, np.int64), last])


def prompt_text(prompt: str, *, motion_score: int | None = None, lowercase: bool = False) -> str:
    """Strip a prompt and say how much shall move, in the words of the training captions.

    A positive ``motion_score`` becomes `` motion score: 30.``, zero or less `` low motion``,
    and ``None`` adds nothing; behind an empty prompt the space is left out. ``lowercase`` is
    what diffusers does before it tokenizes; the original sampling script keeps the case.
    """
    text = prompt.strip()
    if motion_score is not None:
        motion = f"motion score: {motion_score}." if motion_score > 0 else "low motion"
        text = f"{text} {motion}".lstrip()
    return text.lower() if lowercase else text


def select(
    hidden_states: NDArray[Any], prompt: TokenizedPrompt
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Pick what the transformer sees: hidden states [1, S, Ct] and mask i64 [1, S].

    ``hidden_states`` [1, ≥ length, Ct] may be those of a padded run; padding becomes zeros.
    """
    valid = prompt.keep < prompt.length
    selected = np.zeros((1, prompt.keep.size, hidden_states.shape[2]), hidden_states.dtype)
    selected[:, valid] = hidden_states[:, prompt.keep[valid]]
    return selected, valid[None].astype(np.int64)
