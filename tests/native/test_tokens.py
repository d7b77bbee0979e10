"""Token ids against the tokenizers library, on texts that look for trouble."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

COUNT = 2000
ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz      ,.'",
    "圆形移动的黑色蓝方红绿向左右上下一个三角，。、《》「」！？",
    "🙂🧑‍🚀👩‍👩‍👧🇩🇪❤️\u200d\ufe0f",
    "e\u0301a\u0308\u0330\u1100\u1161\u11a8ｆｕﬁǅİß",
    "".join(map(chr, range(33))) + "\x7f\x85\xa0\u2028\u3000\ufeff\u200b",
    "0123456789½²٣%'s 've 'LL",
    "▁ ▁<0x0A>",
)
SPECIALS = ("<bos>", "<eos>", "<pad>", "<unk>", "<bo", "s>", "<unused3>", "\n\n", "▁▁")


def _texts() -> list[str]:
    chosen = random.Random(5)
    texts = ["", " ", "\x00", "a" * 3000, "圆" * 1000, " " * 500]
    while len(texts) < COUNT:
        parts = []
        for _ in range(chosen.randint(1, 6)):
            alphabet = chosen.choice(ALPHABETS)
            parts.append("".join(chosen.choices(alphabet, k=chosen.randint(0, 12))))
            if chosen.random() < 0.3:
                parts.append(chosen.choice(SPECIALS))
            if chosen.random() < 0.2:
                points = (chosen.randrange(0x20, 0x30000) for _ in range(3))
                parts.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
        texts.append("".join(parts))
    return texts


def _differences(build: Path, tokenizer_file: Path) -> list[tuple[str, list[int], list[int]]]:
    texts = _texts()
    ran = subprocess.run(
        [build / "tests/text_filter", tokenizer_file],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    found = json.loads(ran.stdout)
    assert len(found) == COUNT
    return [each for each in zip(texts, found, expected, strict=True) if each[1] != each[2]]


def test_like_gemmas(build: Path, tokenizer_file: Path) -> None:
    """Byte-pair encoding of whole texts, with byte fallback."""
    assert _differences(build, tokenizer_file) == []


def test_byte_level(build: Path) -> None:
    root = Path(__file__).parents[2]
    file = root / "examples/shapes/checkpoints/tokenizer/tokenizer.json"
    assert _differences(build, file) == []


@pytest.mark.parametrize("normalized", [True, False])
def test_added_tokens(normalized: bool, build: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    """Tokens that take spaces in, that are words, and of which one is the begin of another."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    flags = ({}, {"lstrip": True}, {"rstrip": True}, {"single_word": True})
    contents = ("\n\n", "▁▁", " a", "a b", "abc", "圆形", "ab", "e\u0301", "1")
    tokenizer.add_tokens(
        [
            AddedToken(content, normalized=normalized, **flags[index % len(flags)])
            for index, content in enumerate(contents)
        ]
    )
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert _differences(build, path) == []
