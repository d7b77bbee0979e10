"""The corpus in tests/data/manifests, the reader, the JSON Schema and docs/manifest.md agree."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from sana_rt import errors, manifest
from sana_rt.errors import BundleFileError, ManifestError, ManifestMissingError

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests/data/manifests"
SCHEMA = ROOT / "docs/manifest.schema.json"
SPECIFICATION = (ROOT / "docs/manifest.md").read_text()
INDEX: dict[str, dict[str, Any]] = {
    case["file"]: case for case in json.loads((CORPUS / "index.json").read_text())
}
VALID = [file for file, case in INDEX.items() if case["verdict"] == "accept"]
INVALID = [file for file, case in INDEX.items() if case["verdict"] == "refuse"]

#: Seconds in which any of them is refused, however large the numbers in it are.
MOMENT = 1.0

# What no manifest alone can show: they are about the files beside it.
ON_DISK = {ManifestMissingError, BundleFileError}
NAMED_ERRORS = {
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, ManifestError) and error is not ManifestError
}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_manifests", CORPUS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_corpus_is_what_its_script_writes(make: ModuleType) -> None:
    committed = {
        path.relative_to(CORPUS).as_posix(): path.read_bytes() for path in CORPUS.rglob("*.json")
    }
    assert committed == make.corpus()


def test_every_manifest_is_in_the_index() -> None:
    files = {path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*.json")}
    assert {*VALID, *INVALID} == set(INDEX) == files
    assert all(INDEX[file]["error"] is None for file in VALID)


def test_every_named_error_has_a_case() -> None:
    shown = {INDEX[file]["error"] for file in INVALID}
    assert shown == {error.__name__ for error in NAMED_ERRORS - ON_DISK}


@pytest.mark.parametrize("name", VALID)
def test_reader_accepts(name: str) -> None:
    read = manifest.decode((CORPUS / name).read_bytes())
    assert manifest.decode(manifest.encode(read)) == read


@pytest.mark.parametrize("name", VALID)
def test_schema_accepts(name: str, validator: jsonschema.Draft202012Validator) -> None:
    text = (CORPUS / name).read_text()
    validator.validate(json.loads(text))
    validator.validate(json.loads(manifest.encode(manifest.decode(text.encode()))))


@pytest.mark.parametrize("name", INVALID)
def test_reader_refuses_with_the_named_error(name: str) -> None:
    data = (CORPUS / name).read_bytes()
    started = time.process_time()
    with pytest.raises(ManifestError) as caught:
        manifest.decode(data)
    assert time.process_time() - started < MOMENT
    assert type(caught.value).__name__ == INDEX[name]["error"]
    assert len(str(caught.value)) < 2000  # the value is shown, but not a page of it


@pytest.mark.parametrize("name", INVALID)
def test_schema_refuses_what_the_index_says(
    name: str, validator: jsonschema.Draft202012Validator
) -> None:
    try:
        value = json.loads((CORPUS / name).read_bytes())
    except (ValueError, RecursionError):
        refused = False  # there is no JSON value to hold against the schema
    else:
        refused = not validator.is_valid(value)
    assert refused == (INDEX[name]["schema"] == "refuse")


def test_schema_file_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == manifest.schema(), (
        "run: sana-rt inspect --schema > docs/manifest.schema.json"
    )


def test_specification_names_every_error() -> None:
    rows = re.findall(r"^\| `(\w+Error)` \|", SPECIFICATION, flags=re.MULTILINE)
    assert sorted(rows) == sorted(error.__name__ for error in NAMED_ERRORS)


def test_specification_states_every_limit() -> None:
    rows = dict(re.findall(r"^\| `(MAX_\w+)` \| ([\d,]+)", SPECIFICATION, flags=re.MULTILINE))
    stated = {name: int(value.replace(",", "")) for name, value in rows.items()}
    from sana_rt import tensors

    limits = {
        name: value
        for module in (manifest, tensors)
        for name, value in vars(module).items()
        if name.startswith("MAX_")
    }
    assert stated == limits


def test_specification_example_is_a_manifest() -> None:
    annotated = SPECIFICATION.split("```jsonc\n")[1].split("```")[0]
    example = re.sub(r"^\s*//.*$|\s+// .*$", "", annotated, flags=re.MULTILINE)
    read = manifest.decode(example.encode())
    assert set(read.variants) == {"bf16"}
    assert read.variants["bf16"].plans["sm120"]["timestep"].flavour == "rtx"
