"""A checkpoint's ``tokenizer.json``, and whether it is the one its text encoder was trained with.

An exporter asks before it puts the file into a bundle, a player before it encodes a prompt: another
model's tokenizer gives tokens, too, and frames of something else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta
from tokenizers import Tokenizer

from sana_rt import documents
from sana_rt.errors import TokenizerError
from sana_rt.model_spec import TextSpec

TokenId = Annotated[int, Meta(ge=0, lt=2**32)]  # of the library

#: Rows of an embedding that may have no token: tables are padded to a multiple of at most this.
PADDING: Final = 128

_MAX_ID: Final = (1 << 32) - 1  # of the library
_REMEDY: Final = "use the tokenizer of the same checkpoint as the text encoder."


def read(path: Path, spec: TextSpec) -> Tokenizer:
    """The tokenizer at ``path``, without truncation and padding.

    Raises :class:`TokenizerError` if it is damaged, or not of a text encoder of ``spec``.
    """
    with _damage_of(path):
        tokenizer = Tokenizer.from_buffer(documents.read_bytes(path))
        _check_reading(tokenizer, path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("a 圆")  # what is damaged inside shows when it is used
        _check_beginning(tokenizer, spec, path)
        check_special(tokenizer, [spec.pad_token_id], "padding", path)
        _check_size(tokenizer, spec, path)
    return tokenizer


def check_special(tokenizer: Tokenizer, ids: Collection[int], use: str, path: Path) -> None:
    """Raise :class:`TokenizerError` unless each of ``ids`` is a special token."""
    added = tokenizer.get_added_tokens_decoder()
    for token in ids:
        if token not in added or not added[token].special:
            there = tokenizer.id_to_token(token) if 0 <= token <= _MAX_ID else None
            raise TokenizerError(
                f"{path} has {there!r} at {token}.",
                expected=f"a special token for {use}.",
                remedy=_REMEDY,
            )


def _check_reading(tokenizer: Tokenizer, path: Path) -> None:
    """Refuse what would give transformers other tokens: another end cut off, or chance."""
    if tokenizer.truncation is not None and tokenizer.truncation["direction"] == "left":
        raise TokenizerError(
            f"{path} cuts a long text at its beginning.",
            expected="truncation at the end, or none.",
            remedy=_REMEDY,
        )
    dropout = getattr(tokenizer.model, "dropout", None)
    if dropout:
        raise TokenizerError(
            f"{path} leaves out merges at random, with a dropout of {dropout:g}.",
            expected="no dropout.",
            remedy=_REMEDY,
        )


def _check_beginning(tokenizer: Tokenizer, spec: TextSpec, path: Path) -> None:
    added = tokenizer.encode("").ids
    if added != [spec.bos_token_id]:
        raise TokenizerError(
            f"{path} encodes the empty text as the tokens {added}.",
            expected=f"only BOS, {[spec.bos_token_id]}.",
            remedy=_REMEDY,
        )


def _check_size(tokenizer: Tokenizer, spec: TextSpec, path: Path) -> None:
    size = tokenizer.get_vocab_size()
    least = max(1, spec.vocab_size - PADDING + 1)
    if not least <= size <= spec.vocab_size:
        raise TokenizerError(
            f"{path} has {size:,} tokens.",
            expected=f"{least:,} to {spec.vocab_size:,}, for the rows of the embedding.",
            remedy=_REMEDY,
        )
    last = max(tokenizer.get_added_tokens_decoder(), default=0)
    if last >= spec.vocab_size:
        raise TokenizerError(
            f"{path} has {tokenizer.id_to_token(last)!r} at {last:,}.",
            expected=f"tokens below {spec.vocab_size:,}, the rows of the embedding.",
            remedy=_REMEDY,
        )


@contextlib.contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Turn what the library raises for a damaged file into :class:`TokenizerError`.

    A panic of its Rust code is no Exception, and has no name that can be imported.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"{path} cannot be read as a tokenizer: {error}.",
            expected="a tokenizer.json of the Hugging Face tokenizers library.",
            remedy="copy the bundle again, or export the checkpoint again.",
        ) from error
