"""A checkpoint from the Hugging Face Hub, at one commit, and what it was written down as."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, ModelInfo, snapshot_download
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
    "LICENSE*",
)
#: Second copies of the same weights.
UNNEEDED: Final = ("*.fp16.*", "*.bf16.*")

# The base of the errors of whatever HTTP library the hub's client uses; it changed once.
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit, and the licence that its model card states."""

    repo_id: str
    revision: str
    license: str | None

    @property
    def record(self) -> dict[str, str | None]:
        """What is written into the folder."""
        return asdict(self)


def fetch(
    repo_id: str,
    revision: str,
    folder: Path,
    *,
    endpoint: str | None = None,
    announce: Callable[[Snapshot], None] = lambda _: None,
) -> str:
    """Download what an export needs of ``repo_id`` into ``folder``; returns the commit.

    A branch or tag is resolved first, and ``announce`` is told what will be downloaded. The commit
    and the licence are written into ``folder`` when everything is there; the commit ends up in the
    manifest. What was downloaded before is not downloaded again. Raises :class:`FetchError`,
    :class:`StorageError`, or :class:`UsageError` if ``folder`` holds another revision.
    """
    if _COMMIT.fullmatch(revision):
        _check_folder(folder, repo_id, revision)  # without asking the hub
    snapshot = _resolve(repo_id, revision, endpoint)
    _check_folder(folder, repo_id, snapshot.revision)
    announce(snapshot)
    with storage_errors(folder):
        _download(repo_id, snapshot.revision, folder, endpoint)
    record = json.dumps(snapshot.record, indent=2).encode() + b"\n"
    write_bytes(folder / FETCHED_NAME, record)
    return snapshot.revision


def _resolve(repo_id: str, revision: str, endpoint: str | None) -> Snapshot:
    try:
        info = HfApi(endpoint=endpoint).model_info(repo_id, revision=revision)
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no repository id: {error}.") from error
    except (_HTTPError, OfflineModeIsEnabled) as error:
        raise _failed(f"{repo_id}@{revision}", error) from error
    if info.sha is None:
        raise FetchError(f"The hub names no commit for {repo_id}@{revision}.")
    return Snapshot(repo_id, info.sha, _license(info))


def _license(info: ModelInfo) -> str | None:
    """What the model card states: an identifier, a name, a link."""
    names = ("license", "license_name", "license_link")
    stated = [getattr(info.card_data, name, None) for name in names]
    return ", ".join(str(each) for each in stated if each) or None


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


def _check_folder(folder: Path, repo_id: str, revision: str) -> None:
    path = folder / FETCHED_NAME
    if not path.is_file():
        return
    there = read_json(path)
    if (there.get("repo_id"), there.get("revision")) != (repo_id, revision):
        raise UsageError(
            f"{folder} holds {there.get('repo_id')}@{there.get('revision')}.",
            expected=f"{repo_id}@{revision}, or an empty folder.",
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
