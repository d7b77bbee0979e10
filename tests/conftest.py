"""Fixtures shared by the tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from sana_rt.export.instructions import NEGATIVE_PROMPT, ORIGINAL


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``tokenizer.json`` built like Gemma's, of 700 to 800 tokens: byte fallback, BOS in front.

    As in Gemma's, a word carries the space before it, so that an instruction's last space
    becomes part of the prompt's first token.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    words = re.findall(r" ?[^ \n]+", f"{ORIGINAL}\n{NEGATIVE_PROMPT} motion score: 30.")
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
