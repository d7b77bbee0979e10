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


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seeded small checkpoint, a diffusers folder."""
    from sana_rt.export.seeded import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint as a bundle with the variant ``fp32``, every graph verified.

    Made once a run, in half a minute on a quiet machine; do not write into it.
    """
    from sana_rt.export.checkpoint import open_checkpoint
    from sana_rt.export.onnx_export import export_bundle

    root = tmp_path_factory.mktemp("small") / "bundle"
    return export_bundle(open_checkpoint(small_checkpoint), root).root
