"""A checkpoint from the Hugging Face Hub, at one commit, and what it was written down as."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sana_rt.errors import FetchError, UsageError
from sana_rt.export.checkpoint import FETCHED_NAME
from sana_rt.export.configs import EXTRAS_NAME
from sana_rt.export.weights import read_json
from sana_rt.files import storage_errors, write_bytes

#: What an export reads, in the diffusers layout and in the original one.
NEEDED: Final = (
    "model_index.json",
    EXTRAS_NAME,
    "*/config.json",
    "*/*.safetensors",
    "*/*.safetensors.index.json",
    "scheduler/*.json",
    "tokenizer/*",
    "checkpoints/*.pt",
    "checkpoints/*.pth",
    "vae/*.pth",
)
#: Second copies of the same weights.
UNNEEDED: Final = ("*.fp16.*", "*.bf16.*")

# The base of the errors of whatever HTTP library the hub's client uses; it changed once.
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]

_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(repo_id: str, revision: str, folder: Path, *, endpoint: str | None = None) -> str:
    """Download what an export needs of ``repo_id`` into ``folder``; returns the commit.

    A branch or tag is resolved first; the commit is written into ``folder`` when everything is
    there, and ends up in the manifest. What was downloaded before is not downloaded again.
    Raises :class:`FetchError`, :class:`StorageError`, or :class:`UsageError` if ``folder`` holds
    another revision.
    """
    commit = _resolve(repo_id, revision, endpoint)
    record = {"repo_id": repo_id, "revision": commit}
    _check_folder(folder, record)
    with storage_errors(folder):
        _download(repo_id, commit, folder, endpoint)
    write_bytes(folder / FETCHED_NAME, json.dumps(record, indent=2).encode() + b"\n")
    return commit


def _resolve(repo_id: str, revision: str, endpoint: str | None) -> str:
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        commit = HfApi(endpoint=endpoint).model_info(repo_id, revision=revision).sha
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no repository id: {error}.") from error
    except (_HTTPError, OfflineModeIsEnabled) as error:
        raise _failed(f"{repo_id}@{revision}", error) from error
    if commit is None:
        raise FetchError(f"The hub names no commit for {repo_id}@{revision}.")
    return commit


def _download(repo_id: str, commit: str, folder: Path, endpoint: str | None) -> None:
    try:
        snapshot_download(
            repo_id,
            revision=commit,
            local_dir=folder,
            allow_patterns=list(NEEDED),
            ignore_patterns=list(UNNEEDED),
            endpoint=endpoint,
        )
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no repository id: {error}.") from error
    except (_HTTPError, LocalEntryNotFoundError) as error:
        raise _failed(f"{repo_id}@{commit}", error) from error


def _check_folder(folder: Path, record: dict[str, str]) -> None:
    path = folder / FETCHED_NAME
    if not path.is_file():
        return
    there = read_json(path)
    if there != record:
        raise UsageError(
            f"{folder} holds {there.get('repo_id')}@{there.get('revision')}.",
            expected=f"{record['repo_id']}@{record['revision']}, or an empty folder.",
            remedy="choose another folder with --output, or remove this one.",
        )


def _failed(what: str, error: Exception) -> FetchError:
    remedy = "check the network, then run the command again; it goes on where it stopped."
    if isinstance(error, GatedRepoError):
        remedy = "accept the licence on the model's page and log in with `hf auth login`."
    elif isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        remedy = "check the name and the revision; for a private model, `hf auth login`."
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FetchError(f"{what} could not be downloaded: {first}", remedy=remedy)
