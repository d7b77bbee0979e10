"""Tokenizing a prompt: what is kept, what is cut and said to be cut, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import msgspec.structs
import numpy as np
import pytest
from tokenizers import Tokenizer

from sana_rt.errors import RequestError, StorageError, TokenizerError
from sana_rt.model_spec import TextSpec
from sana_rt.runtime.text import PromptTokenizer, PromptTruncatedWarning, prompt_text, select

SPEC = TextSpec(
    vocab_size=800,
    hidden_size=6,
    intermediate_size=8,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    query_pre_attn_scalar=2.0,
    max_tokens=20,
    instruction="Given a user prompt, enhance it:\nUser Prompt: ",
)


@pytest.fixture
def tokenizer(tokenizer_file: Path) -> PromptTokenizer:
    return PromptTokenizer.from_file(tokenizer_file, SPEC)


def test_a_short_prompt_is_bos_and_its_own_tokens(tokenizer, tokenizer_file):
    prompt = tokenizer.encode("a cat", instruction=False)
    assert prompt.input_ids.dtype == np.int64
    assert prompt.input_ids.tolist() == [
        Tokenizer.from_file(str(tokenizer_file)).encode("a cat").ids
    ]
    assert prompt.input_ids[0, 0] == SPEC.bos_token_id
    assert prompt.attention_mask.tolist() == np.ones_like(prompt.input_ids).tolist()
    assert (prompt.truncated_tokens, prompt.truncated_text) == (0, "")


def test_without_instruction_the_first_positions_are_kept(tokenizer):
    assert tokenizer.max_length(instruction=False) == 20
    assert tokenizer.encode("a cat", instruction=False).keep.tolist() == list(range(20))


def test_with_instruction_bos_and_the_last_positions_are_kept(tokenizer):
    """n + S - 2 positions: the S - 1 last start at the instruction's last token."""
    n = tokenizer.instruction_tokens
    prompt = tokenizer.encode("a cat", instruction=True)
    assert tokenizer.max_length(instruction=True) == n + 18
    assert prompt.keep.tolist() == [0, *range(n - 1, n + 18)]


def test_an_empty_instruction_is_no_instruction(tokenizer_file):
    spec = msgspec.structs.replace(SPEC, instruction="")
    tokenizer = PromptTokenizer.from_file(tokenizer_file, spec)
    with_it, without = (tokenizer.encode("a cat", instruction=x) for x in (True, False))
    assert with_it.input_ids.tolist() == without.input_ids.tolist()
    assert with_it.keep.tolist() == without.keep.tolist()


def test_an_empty_prompt_is_bos_alone(tokenizer):
    prompt = tokenizer.encode("", instruction=False)
    assert prompt.input_ids.tolist() == [[SPEC.bos_token_id]]
    _, mask = select(np.ones((1, 1, 6), np.float32), prompt)
    assert mask.sum() == 1


@pytest.mark.parametrize("instruction", [True, False])
def test_a_long_prompt_loses_its_end_and_says_so(tokenizer, instruction):
    text = "colorful clothing " * 40 + "with a 🐈 and a last word"
    with pytest.warns(PromptTruncatedWarning, match="Left out: .*last word'") as caught:
        prompt = tokenizer.encode(text, instruction=instruction)
    warning = caught[0].message
    assert isinstance(warning, PromptTruncatedWarning)
    assert prompt.length == tokenizer.max_length(instruction=instruction)
    assert (prompt.truncated_tokens, prompt.truncated_text) == (warning.tokens, warning.text)
    assert prompt.truncated_tokens > 0
    # what was kept and what was left out make up the text
    kept = SPEC.instruction * instruction + text
    kept = kept.removesuffix(prompt.truncated_text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncatedWarning)
        again = tokenizer.encode(kept.removeprefix(SPEC.instruction), instruction=instruction)
    assert again.input_ids.tolist() == prompt.input_ids.tolist()
    assert again.truncated_tokens == 0


def test_a_prompt_that_just_fits_is_whole(tokenizer):
    fitting, longer = " blue" * 18 + "x", " blue" * 19 + "x"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenizer.encode(fitting, instruction=False).length == SPEC.max_tokens
    with pytest.warns(PromptTruncatedWarning, match=r"too long by 1 token\."):
        tokenizer.encode(longer, instruction=False)


def test_truncation_and_padding_saved_in_the_file_are_ignored(tokenizer_file, tmp_path):
    saved = Tokenizer.from_file(str(tokenizer_file))
    saved.enable_truncation(3)
    saved.enable_padding(length=64)
    saved.save(str(tmp_path / "tokenizer.json"))
    tokenizer = PromptTokenizer.from_file(tmp_path / "tokenizer.json", SPEC)
    assert 3 < tokenizer.encode("a cat and a bus", instruction=False).length < 20


def test_text_that_is_not_unicode_is_refused(tokenizer):
    with pytest.raises(RequestError, match="not valid Unicode at character 2"):
        tokenizer.encode("a \udcff", instruction=False)


@pytest.mark.parametrize(
    ("score", "suffix"),
    [(30, " motion score: 30."), (1, " motion score: 1."), (0, " low motion"), (None, "")],
)
def test_prompt_text_says_how_much_shall_move(score, suffix):
    assert prompt_text(" A Cat\n", motion_score=score) == "A Cat" + suffix
    assert prompt_text(" A Cat\n", motion_score=score, lowercase=True) == "a cat" + suffix
    assert prompt_text(" ", motion_score=score) == suffix.lstrip()


def test_select_takes_the_kept_positions_and_zeros_the_rest(tokenizer):
    prompt = tokenizer.encode("a cat", instruction=True)
    positions = np.arange(prompt.length, dtype=np.float32)
    states = np.broadcast_to(positions[None, :, None], (1, prompt.length, 6)) + 1
    selected, mask = select(states, prompt)
    valid = prompt.length - tokenizer.instruction_tokens + 2  # BOS, and from position n - 1 on
    assert selected.shape == (1, 20, 6)
    assert (selected.dtype, mask.dtype) == (np.float32, np.int64)
    assert mask.tolist() == [[1] * valid + [0] * (20 - valid)]
    assert selected[0, :valid, 0].tolist() == (prompt.keep[:valid] + 1).tolist()
    assert not selected[0, valid:].any()
    padded = np.full((1, tokenizer.max_length(instruction=True), 6), np.nan, np.float32)
    padded[:, : prompt.length] = states
    np.testing.assert_array_equal(select(padded, prompt)[0], selected)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": "1.0"}', "\x00\x01"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    path.write_text(damage)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        PromptTokenizer.from_file(path, SPEC)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        PromptTokenizer.from_file(tmp_path / "tokenizer.json", SPEC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bos_token_id": 1}, r"empty text as the tokens \[2\]"),
        ({"pad_token_id": 40}, "at 40"),
        ({"pad_token_id": 5000}, "None at 5000"),
        ({"pad_token_id": 1 << 50}, f"None at {1 << 50}"),
        ({"vocab_size": 300}, r"has 768 tokens\.\nExpected: 173 to 300,"),
        ({"vocab_size": 896}, r"has 768 tokens\.\nExpected: 769 to 896,"),
    ],
    ids=str,
)
def test_a_tokenizer_of_another_model_is_refused(tokenizer_file, change, message):
    with pytest.raises(TokenizerError, match=message):
        PromptTokenizer.from_file(tokenizer_file, msgspec.structs.replace(SPEC, **change))


def test_a_tokenizer_that_adds_no_bos_is_refused(tokenizer_file, tmp_path):
    document = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    document["post_processor"] = None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    with pytest.raises(TokenizerError, match=r"empty text as the tokens \[\]"):
        PromptTokenizer.from_file(path, SPEC)
