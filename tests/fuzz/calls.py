"""What is done with a bundle: calls, command lines, states to resume, bundles that are spoilt.

Calls and command lines are files, too: JSON that says what is called and with what.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from click.testing import CliRunner
from tests.fuzz import mutations
from tests.fuzz.target import Target

import sana_rt
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.manifest import MANIFEST_NAME
from sana_rt.runtime.player import Player
from sana_rt.runtime.request import Request

_SMALL: Final = {"height": 32, "width": 32, "timesteps": [1000]}
#: A clip of more pixels is not played: that a large one takes long is no finding.
_PIXELS: Final = 32 * 32 * 64
_ELEMENTS: Final = 1 << 20
#: They write nothing with ``--dry-run``, which is added.
_DRY: Final = ("build", "generate", "stream")
_JSON: Final = mutations.any_of((mutations.of_json,) * 8 + (mutations.of_bytes,))


@functools.cache
def _player(folder: Path) -> Player:
    return sana_rt.open(folder / "bundle", threads=1)


# ---- states ----


def _states(folder: Path) -> list[bytes]:
    """A stream stopped after its first frame, and one that waits with a chunk half decoded."""
    stream = _player(folder).stream("a red circle", seconds=2, prompts={1.3: "a star"}, **_SMALL)
    saved = []
    for calls in (1, 2):
        for _ in range(calls):
            next(stream)
        stream.state().save(folder / "seed.npz")
        saved.append((folder / "seed.npz").read_bytes())
    return saved


def _resume(path: Path) -> object:
    state = sana_rt.State.load(path)
    player = _player(path.parent)
    if _too_long(state.header.request):
        return None
    return next(player.stream(resume=state))


def _too_long(request: Request) -> bool:
    return request.height * request.width * request.num_frames > _PIXELS


# ---- calls of the public interface ----

_CALLS: Final = (
    {
        "call": "stream",
        "prompt": "a red circle",
        "seconds": 2.0,
        "prompts": [[1.3, "a star"]],
        "recommit": True,
        "seed": 7,
        "fps": 8,
        "guidance_scale": 1.0,
        "motion_score": 30,
        "lowercase": False,
        **_SMALL,
    },
    {
        "call": "generate",
        "prompt": "a red circle",
        "negative_prompt": "blue",
        "num_frames": 9,
        "guidance_scale": 4.5,
        "noise": {"dtype": "float32", "shape": [1, 16, 3, 4, 4], "value": 0.5},
        "image": {"dtype": "uint8", "shape": [32, 32, 3], "value": 7},
        **_SMALL,
    },
    {
        "call": "generate",
        "num_frames": 5,
        "prompt_embeds": {
            "prompt_embeds": {"dtype": "float32", "shape": [1, 64, 64], "value": 0.1},
            "prompt_attention_mask": {"dtype": "int64", "shape": [1, 64], "value": 1},
        },
        **_SMALL,
    },
    {
        "call": "plan",
        "prompt": "x",
        "num_frames": 9,
        "num_inference_steps": 4,
        "solver": "renoise",
        "flow_shift": 8.0,
        "image": "nowhere.png",
    },
)


def _call(path: Path) -> object:
    try:
        given = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict) or not isinstance(given.get("call"), str):
        return None
    arguments = {name: _argument(value) for name, value in given.items() if name != "call"}
    if isinstance(arguments.get("prompts"), list):
        pairs = [each for each in arguments["prompts"] if isinstance(each, list)]
        arguments["prompts"] = {each[0]: each[-1] for each in pairs if each and _hashes(each[0])}
    player, called = _player(path.parent), given["call"]
    own = ("prompts", "recommit", "noise", "prompt_embeds")
    request = player.request(**{k: v for k, v in arguments.items() if k not in own})
    if called not in ("generate", "stream", "plan") or _too_long(request):
        return request
    made = getattr(player, called)(**arguments)
    return next(made) if isinstance(made, Iterator) else made


def _hashes(value: object) -> bool:
    return not isinstance(value, list | dict)


def _argument(value: Any) -> Any:
    """What JSON stands for: an array where it says so."""
    if isinstance(value, dict) and {"dtype", "shape", "value"} <= set(value):
        return _array(value)
    if isinstance(value, dict):
        return {name: _argument(each) for name, each in value.items()}
    return value


def _array(value: Mapping[str, Any]) -> Any:
    try:
        shape = tuple(int(size) for size in value["shape"])
        if abs(int(np.prod(shape, dtype=object))) > _ELEMENTS:
            return value["value"]
        return np.full(shape, value["value"], value["dtype"])
    except (TypeError, ValueError, OverflowError, MemoryError, RecursionError):
        return value["value"]


# ---- command lines ----

_SIZES: Final = ("--height", "32", "--width", "32")
_LINES: Final = (
    ("generate", "{}", "a circle", "-o", "v.mp4", "--num-frames", "9", "--seed", "7", *_SIZES),
    ("generate", "{}", "-o", "v.mp4", "--noise", "n.npy", "--prompt-embeds", "e.npz"),
    ("generate", "{}", "x", "--save-latents", "l.npy", "--image", "i.png", "--fit", "stretch"),
    ("stream", "{}", "a circle", "-o", "v.mp4", "--seconds", "2.5", "--prompt-at", "1.2", "star"),
    ("stream", "{}", "x", "-o", "v.mp4", "--save-state", "s", "--timesteps", "1000,500", *_SIZES),
    ("stream", "{}", "-o", "v.mp4", "--resume", "s", "--guidance-scale", "1", "--fps", "8"),
    ("build", "{}", "--variant", "fp32", "--target", "sm89", "--workload", "w.toml", "--json"),
    ("inspect", "{}", "--json"),
    ("inspect", "{}", "--skip-hashes"),
    ("inspect", "{}", "--plans", "--device", "rtx-5090"),
)


def _word(text: str) -> str:
    """``text`` as a system hands it to a program: bytes without a null."""
    return os.fsdecode(text.replace("\0", "").encode("utf-8", "surrogatepass"))


def _line(path: Path) -> object:
    try:
        given = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, list):
        return None
    bundle = str(path.parent / "bundle")
    words = [_word(str(each).replace("{}", bundle)) for each in given]
    if words and words[0] in _DRY:
        words.append("--dry-run")
    return _command(words, path.parent)


def _command(words: list[str], folder: Path) -> str:
    """Run a command; what it raises past its own errors is raised."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(cli, words)
    finally:
        os.chdir(before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


# ---- whole bundles ----


def _bundles(folder: Path) -> list[bytes]:
    """The files of the bundle that are small, one of them a graph, as an archive."""
    bundle = Bundle.read(folder / "bundle")
    small = [file.path for file in bundle.manifest.files if file.bytes < 40_000]
    return [
        _archived({path: (bundle.root / path).read_bytes() for path in paths})
        for paths in ((MANIFEST_NAME,), small)
    ]


def _archived(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _spoil_bundle(data: bytes, random: Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for name in random.sample(sorted(files), min(len(files), random.choice((1, 1, 2, 3)))):
        spoil = mutations.of_json if name.endswith(".json") else mutations.of_bytes
        files[name] = spoil(files[name], random)
    return _archived(files)


def _play_bundle(path: Path) -> object:
    """Lay the spoilt files over the bundle, hash them afresh, and do all that plays nothing."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    root = path.parent / "laid"
    shutil.rmtree(root, ignore_errors=True)
    whole = Bundle.read(path.parent / "bundle")
    for each in (MANIFEST_NAME, *(file.path for file in whole.manifest.files)):
        (root / each).parent.mkdir(parents=True, exist_ok=True)
        if each in files:
            (root / each).write_bytes(files[each])
        elif each == MANIFEST_NAME:  # which is written again
            shutil.copyfile(whole.root / each, root / each)
        else:
            os.link((whole.root / each).resolve(), root / each)
    _hash_afresh(root)
    for words in (("inspect",), ("build", "--dry-run"), ("generate", "x", "-o", "v.mp4")):
        options = ["--dry-run"] if words[0] == "generate" else []
        _command([words[0], str(root), *words[1:], *options], path.parent)
    bundle = Bundle.open(root)
    for file in bundle.manifest.files:
        bundle.check_hash(file)
    with sana_rt.open(root, threads=1) as player:
        return player.plan("a red circle", **_SMALL)


def _hash_afresh(root: Path) -> None:
    """Let the manifest list what is there, if it is one at all."""
    path = root / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_bytes())
        for file in manifest["files"]:
            content = root / file["path"]
            if content.is_file() and content.resolve().is_relative_to(root.resolve()):
                data = content.read_bytes()
                file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        path.write_bytes(json.dumps(manifest).encode(errors="surrogatepass"))
    except (ValueError, TypeError, LookupError, OSError, RecursionError):
        return


def _json_seeds(documents: tuple[Any, ...]) -> list[bytes]:
    return [json.dumps(each).encode() for each in documents]


CALLS: Final = (
    Target(
        "state",
        ".npz",
        _states,
        mutations.any_of((mutations.of_zip,) * 4 + (mutations.of_bytes,)),
        _resume,
        plays=True,
    ),
    Target("call", ".json", lambda _: _json_seeds(_CALLS), _JSON, _call, plays=True),
    Target("command-line", ".json", lambda _: _json_seeds(_LINES), _JSON, _line, plays=True),
    Target("bundle", ".zip", _bundles, _spoil_bundle, _play_bundle, plays=True, count=1000),
)
