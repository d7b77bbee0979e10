"""The files beside a ``tokenizer.json``, with which transformers may make other tokens of a text.

The bundle has the one file only, so the others must say nothing that it does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from sana_rt.errors import CheckpointFormatError
from sana_rt.export.config_keys import Tokens, Values, shown
from sana_rt.export.config_tables import TOKENIZER, AddedToken
from sana_rt.export.weights import read_json

_CONFIG: Final = "tokenizer_config.json"
_SPECIAL: Final = "special_tokens_map.json"
_ADDED: Final = "added_tokens.json"
#: The classes whose constructor makes these steps, whatever the file says.
_GEMMA: Final = ("GemmaTokenizer", "GemmaTokenizerFast")
_UNDERSCORES: Final = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_WORDS: Final = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
#: Those that decide where a token is found; ``special`` matters when text is made of tokens.
_PROPERTIES: Final = ("lstrip", "normalized", "rstrip", "single_word")


def check(path: Path, tokenizer: Tokenizer) -> None:
    """Refuse files beside ``path`` that change what ``tokenizer``, which is its, makes of a text.

    Raises :class:`CheckpointFormatError` for an unknown key, a value that is not implemented,
    and a token or a step that ``path`` has not, or has otherwise.
    """
    there = tokenizer.get_added_tokens_decoder()
    numbers = {token.content: number for number, token in there.items()}
    for file in (path.parent / _CONFIG, path.parent / _SPECIAL):
        if not file.is_file():
            continue
        values = TOKENIZER.checked(str(file), read_json(file))
        if file.name == _CONFIG and values["tokenizer_class"] in _GEMMA:
            _check_steps(path, tokenizer)
        for token, number in _tokens(file, values):
            found = _number(path, file, token.content, number, numbers)
            _check_properties(path, file, token, there[found])
    file = path.parent / _ADDED
    if file.is_file():
        for content, number in _as(file, dict[str, int], read_json(file)).items():
            _number(path, file, content, number, numbers)


def _number(
    path: Path, file: Path, token: str, wanted: int | None, numbers: Mapping[str, int]
) -> int:
    """The number that the tokenizer has for a token, if it is the one that ``file`` wants."""
    found = numbers.get(token)
    if found is None or wanted not in (None, found):
        at = "" if wanted is None else f" at {wanted}"
        where = "does not have" if found is None else f"has at {found}"
        raise _refusal(f"{file} has the token {shown(token)}{at}, which {path} {where}.")
    return found


def _check_properties(path: Path, file: Path, token: AddedToken, found: Any) -> None:
    for name in _PROPERTIES:
        wanted, actual = getattr(token, name), getattr(found, name)
        if wanted not in (None, actual):
            raise _refusal(
                f"{file} says {name} {wanted} of the token {shown(token.content)}, "
                f"and {path} says {actual}."
            )


def _check_steps(path: Path, tokenizer: Tokenizer) -> None:
    """Refuse a file whose steps are not those that Gemma's classes put in their place."""
    steps = {
        "normalizer": (_content(tokenizer.normalizer), (_UNDERSCORES,)),
        # null is the same: no space is left when it runs
        "pre_tokenizer": (_content(tokenizer.pre_tokenizer), (_WORDS, None)),
        "byte_fallback": (getattr(tokenizer.model, "byte_fallback", None), (True,)),
    }
    for name, (found, known) in steps.items():
        if found not in known:
            raise CheckpointFormatError(
                f"The {name} of {path} is {shown(found)}.",
                expected=f"{known[0]}, which transformers' GemmaTokenizer has.",
                remedy="name the class PreTrainedTokenizerFast, which takes the file as it is.",
            )


def _content(step: Any) -> Any:
    return None if step is None else json.loads(step.__getstate__())


def _refusal(what: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        what,
        expected="the same tokens in both.",
        remedy="save the tokenizer again with transformers, which writes them into tokenizer.json.",
    )


def _tokens(file: Path, values: Values) -> Iterator[tuple[AddedToken, int | None]]:
    """Every token of a file, with its number where the file says that."""
    for key, treatment in TOKENIZER.keys.items():
        value = values.get(key) if isinstance(treatment, Tokens) else None
        if isinstance(value, dict):
            numbered = key == "added_tokens_decoder"
            for name, each in value.items():
                yield _token(each), _as(file, int, name) if numbered else None
        elif value is not None:
            for each in value if isinstance(value, list) else [value]:
                yield _token(each), None


def _token(value: str | AddedToken) -> AddedToken:
    return AddedToken(value) if isinstance(value, str) else value


def _as(file: Path, kind: Any, value: object) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise CheckpointFormatError(f"{file} is invalid: {error}.") from error
