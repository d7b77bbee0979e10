"""Fetching against a hub on this machine: the real client, no network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sana_rt.errors import FetchError, UsageError
from sana_rt.export.checkpoint import FETCHED_NAME, open_checkpoint
from sana_rt.export.fetch import Snapshot, fetch
from sana_rt.export.seeded import SMALL

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/model"


@dataclass
class Hub:
    """One repository at one commit, served as the hub serves it."""

    root: Path
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in paths}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        head, _, file = path.partition(f"/{REPO}/resolve/{COMMIT}/")
        if not head and file in self.files():
            content = self.files()[file]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return 200, {"ETag": etag, "X-Repo-Commit": COMMIT}, content
        if path.startswith(f"/api/models/{REPO}/tree/{COMMIT}"):
            return self.json([self.entry(*each) for each in self.files().items()])
        if path in (f"/api/models/{REPO}/revision/{each}" for each in ("main", COMMIT)):
            siblings = [{"rfilename": name} for name in self.files()]
            card = {"license": "other", "license_name": "shapes", "license_link": "LICENSE"}
            described = {"id": REPO, "sha": COMMIT, "siblings": siblings, "cardData": card}
            return self.json(described)
        missing = "RepoNotFound" if REPO not in path else "RevisionNotFound"
        return 404, {"X-Error-Code": missing}, b""

    def entry(self, name: str, content: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": blob}

    def json(self, value: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@pytest.fixture
def hub(small_checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    root = tmp_path / "repository"
    for path in small_checkpoint.rglob("*"):
        if path.is_file():
            copy = root / path.relative_to(small_checkpoint)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (root / "README.md").write_text("a model")
    (root / "asset/video.mp4").parent.mkdir()
    (root / "asset/video.mp4").write_bytes(b"video")
    (root / "transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"again")
    served = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = served.answer(self.path.partition("?")[0])
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_what_an_export_reads_is_fetched_at_the_commit(
    revision: str, hub: Hub, tmp_path: Path
) -> None:
    folder = tmp_path / "fetched"
    assert fetch(REPO, revision, folder, endpoint=hub.endpoint) == COMMIT
    checkpoint = open_checkpoint(folder)
    assert checkpoint.name == f"{REPO}@{COMMIT}"
    assert checkpoint.notes == ()
    assert not (folder / "README.md").exists()
    assert not (folder / "asset").exists()
    assert not list(folder.rglob("*fp16*"))


def test_the_licence_is_said_before_anything_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    (hub.root / "LICENSE.md").write_text("for shapes")
    said: list[Snapshot] = []

    def announce(snapshot: Snapshot) -> None:
        assert not [path for path in hub.asked if "/resolve/" in path]
        said.append(snapshot)

    folder = tmp_path / "fetched"
    fetch(REPO, "main", folder, endpoint=hub.endpoint, announce=announce)
    assert said == [Snapshot(REPO, COMMIT, "other, shapes, LICENSE")]
    assert json.loads((folder / FETCHED_NAME).read_text()) == {
        "repo_id": REPO,
        "revision": COMMIT,
        "license": "other, shapes, LICENSE",
    }
    assert (folder / "LICENSE.md").read_text() == "for shapes"


def test_a_second_fetch_downloads_nothing(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "fetched"
    fetch(REPO, COMMIT, folder, endpoint=hub.endpoint)
    record = (folder / FETCHED_NAME).read_bytes()
    hub.asked.clear()
    fetch(REPO, COMMIT, folder, endpoint=hub.endpoint)
    assert not [path for path in hub.asked if path.endswith(".safetensors")]
    assert (folder / FETCHED_NAME).read_bytes() == record


def test_an_interrupted_fetch_leaves_no_record(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fetched"
    answer = hub.answer
    with monkeypatch.context() as patch:
        refused = (403, dict[str, str](), b"")
        patch.setattr(
            hub,
            "answer",
            lambda path: refused if path.endswith("vae/config.json") else answer(path),
        )
        with pytest.raises(FetchError, match=REPO):
            fetch(REPO, COMMIT, folder, endpoint=hub.endpoint)
    assert not (folder / FETCHED_NAME).exists()
    assert fetch(REPO, COMMIT, folder, endpoint=hub.endpoint) == COMMIT
    assert (folder / "vae/config.json").is_file()


def test_a_folder_with_another_revision_is_refused(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "fetched"
    fetch(REPO, COMMIT, folder, endpoint=hub.endpoint)
    with pytest.raises(UsageError, match=f"holds {REPO}@{COMMIT}"):
        fetch(REPO, "f" * 40, folder, endpoint=hub.endpoint)


@pytest.mark.parametrize(
    ("repo", "revision"), [("owner/other", "main"), (REPO, "no-such-branch"), (REPO, "f" * 40)]
)
def test_what_is_not_there_is_said(repo: str, revision: str, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=f"{repo}@{revision}.*could not be downloaded"):
        fetch(repo, revision, tmp_path / "fetched", endpoint=hub.endpoint)
    assert not (tmp_path / "fetched" / FETCHED_NAME).exists()


def test_no_answer_is_said(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="could not be downloaded"):
        fetch(REPO, "main", tmp_path / "fetched", endpoint="http://127.0.0.1:9")


def test_a_client_that_is_told_to_stay_offline_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for revision in ("main", COMMIT):
        with pytest.raises(FetchError, match="could not be downloaded"):
            fetch(REPO, revision, tmp_path / "fetched")


def test_an_id_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no repository id"):
        fetch("a/b/c", "main", tmp_path / "fetched")


def test_the_small_checkpoint_is_what_came_back(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "fetched"
    fetch(REPO, COMMIT, folder, endpoint=hub.endpoint)
    assert open_checkpoint(folder).spec == SMALL
