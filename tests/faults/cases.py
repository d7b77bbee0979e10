"""The commands that are spoilt, what they begin with, and what may be there after a fault."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

import sana_rt
from sana_rt import geometry
from sana_rt.bundle import Bundle
from sana_rt.errors import SanaRTError
from sana_rt.manifest import MANIFEST_NAME
from sana_rt.runtime.state import State
from sana_rt.runtime.video import read_video

Snapshot = Mapping[str, str]  # SHA-256 by path

#: How a complaint begins about what looks whole and is not.
WRONG: Final = "WRONG"

_PROMPT: Final = "a red circle moving to the right"
_SMALL: Final = ("--height", "32", "--width", "32", "--threads", "1")
_SECONDS: Final = "2.2"  # five latent frames and more at 8 frames a second: three chunks
_LOCK: Final = ".lock"
#: What TensorRT writes differs from run to run: it measures while it builds, and logs times.
_VARY: Final = (".log", ".plan")
_RECIPE: Final = """\
name = "tried"
description = "Three layers in two formats."

[[rules]]
layers = ["block_*/attn1.to_q", "block_*/ff.conv_temp*"]
format = "nvfp4"
reason = "tried"
source = "tests"

[[rules]]
layers = ["block_*/attn2.to_q"]
format = "fp8"
reason = "tried"
source = "tests"
"""


@dataclass(frozen=True)
class Materials:
    """What commands begin with: a checkpoint, and bundles that are copied.

    ``exported`` is an older export of the checkpoint. ``playable`` is a whole bidirectional model,
    ``causal`` a whole block-causal one, ``blocks`` two blocks in float32 and in bfloat16.
    """

    checkpoint: Path | None = None
    exported: Path | None = None
    playable: Path | None = None
    causal: Path | None = None
    blocks: Path | None = None


@dataclass(frozen=True)
class Undisturbed:
    """A case's files before, after a run without a fault, and after another one.

    The other one may choose another folder: a variant's files are never written over.
    """

    before: Snapshot
    after: Snapshot
    again: Snapshot
    root: Path  # what an undisturbed run left


@dataclass(frozen=True)
class Case:
    """A command in a folder of its own; in its arguments ``{}`` stands for that folder.

    ``prepare`` makes what is in the folder before. ``judge`` is given the folder after a fault
    and says what is wrong with it; ``failed`` says that the command had time to clean up.
    """

    name: str
    arguments: tuple[str, ...]
    prepare: Callable[[Path], object]
    judge: Callable[[Path, Undisturbed, bool], list[str]]
    traced: Path | None = None  # the checkpoint that it exports

    def command(self, folder: Path) -> list[str]:
        """The arguments for ``folder``."""
        return [each.replace("{}", str(folder)) for each in self.arguments]


def snapshot(folder: Path) -> dict[str, str]:
    """The files of a folder by path."""
    return {
        path.relative_to(folder).as_posix(): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _LOCK
    }


def _content(path: Path) -> str:
    if path.name.endswith(_VARY):
        return "there"
    data = path.read_bytes()
    if path.name == MANIFEST_NAME:
        data = json.dumps(_constant(json.loads(data))).encode()
    return hashlib.sha256(data).hexdigest()


def _constant(value: Any) -> Any:
    """A manifest without the hashes of files that vary, and without measured errors.

    A library that gets no memory for its fastest kernel takes another one, which sums in another
    order.
    """
    if isinstance(value, list):
        return [_constant(each) for each in value]
    if not isinstance(value, dict):
        return value
    varies = str(value.get("path")).endswith(_VARY) and "sha256" in value
    left_out = {"max_error", *(("sha256", "bytes") if varies else ())}
    return {key: _constant(each) for key, each in value.items() if key not in left_out}


def cases(materials: Materials) -> Iterator[Case]:
    """What can be tried with the materials that there are."""
    if materials.checkpoint is not None:
        yield _export("export", materials.checkpoint, _nothing)
    if materials.checkpoint is not None and materials.exported is not None:
        yield _export("export, again", materials.checkpoint, _copy(materials.exported))
    if materials.blocks is not None:
        yield from _of_blocks(materials.blocks)
    if materials.playable is not None:
        yield from _of_playable(materials.playable)
    if materials.causal is not None:
        yield _stream(materials.causal)


def _export(name: str, checkpoint: Path, prepare: Callable[[Path], object]) -> Case:
    arguments = ("export", str(checkpoint), "{}/bundle", "--force")
    return Case(name, arguments, prepare, _judge_bundle, traced=checkpoint)


def _of_blocks(blocks: Path) -> Iterator[Case]:
    def prepare(folder: Path) -> None:
        shutil.copytree(blocks, folder / "bundle")
        (folder / "tried.toml").write_text(_RECIPE)

    quantize = ("quantize", "{}/bundle", "--recipe", "{}/tried.toml")
    build = ("build", "{}/bundle", "--variant", "bf16", "--target", "sm120")
    yield Case("quantize", quantize, prepare, _judge_bundle)
    yield Case("build", build, prepare, _judge_build)


def _of_playable(playable: Path) -> Iterator[Case]:
    def prepare(folder: Path) -> None:
        shutil.copytree(playable, folder / "bundle")
        (folder / "tried.toml").write_text(_RECIPE)
        (folder / "prompts.txt").write_text(f"{_PROMPT}\n")

    calibrate = (
        "--prompts",
        "{}/prompts.txt",
        "--save-calibration",
        "{}/table.json",
        "--overwrite",
    )
    yield Case(
        "quantize, calibrated",
        ("quantize", "{}/bundle", "--recipe", "{}/tried.toml", *calibrate, "--threads", "1"),
        prepare,
        _judge_calibrated,
    )
    outputs = ("-o", "{}/video.mp4", "--save-latents", "{}/latents.npy", "--overwrite")
    yield Case(
        "generate",
        ("generate", str(playable), _PROMPT, *outputs, "--num-inference-steps", "2", *_SMALL),
        _nothing,
        _judge_outputs,
    )


def _stream(causal: Path) -> Case:
    outputs = ("-o", "{}/video.mp4", "--save-state", "{}/state", "--overwrite")
    length = ("--seconds", _SECONDS, "--timesteps", "1000")
    return Case(
        "stream",
        ("stream", str(causal), _PROMPT, *outputs, *length, *_SMALL),
        _nothing,
        _StreamJudge(causal),
    )


def transformer_only(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint without text encoder and autoencoder, which is soon exported."""
    if not folder.exists():
        parts = shutil.ignore_patterns("vae", "text_encoder")
        shutil.copytree(checkpoint, folder, ignore=parts)
    return folder


def _nothing(_: Path) -> None:
    """Begin with an empty folder."""


def _copy(bundle: Path) -> Callable[[Path], object]:
    """Begin with a bundle."""
    return lambda folder: shutil.copytree(bundle, folder / "bundle")


def _judge_bundle(folder: Path, undisturbed: Undisturbed, failed: bool) -> list[str]:
    return [*_wrong_bundle(folder, undisturbed), *(_leftovers(folder) if failed else ())]


def _judge_build(folder: Path, undisturbed: Undisturbed, failed: bool) -> list[str]:
    left = [path for path in _leftovers(folder) if not path.endswith(".log")] if failed else []
    return [*_wrong_bundle(folder, undisturbed), *left]


def _judge_calibrated(folder: Path, undisturbed: Undisturbed, failed: bool) -> list[str]:
    return [
        *_judge_bundle(folder, undisturbed, failed),
        *_changed(folder, undisturbed, ("table.json",)),
    ]


def _judge_outputs(folder: Path, undisturbed: Undisturbed, failed: bool) -> list[str]:
    return [
        *_changed(folder, undisturbed, undisturbed.after),
        *(_others(folder, undisturbed.after) if failed else ()),
    ]


def _wrong_bundle(folder: Path, undisturbed: Undisturbed) -> Iterator[str]:
    """Whether the bundle is the old one, the new one, or the old one with a part of the new."""
    manifest = folder / "bundle" / MANIFEST_NAME
    if not manifest.exists():
        if f"bundle/{MANIFEST_NAME}" in undisturbed.before:
            yield "the bundle is gone"
        return
    try:
        bundle = Bundle.open(folder / "bundle")
        for file in bundle.manifest.files:
            bundle.check_hash(file)
    except SanaRTError as error:
        yield f"the bundle does not verify: {error.happened}"
        return
    known = [
        _constant(json.loads(path.read_bytes()))
        for path in (
            undisturbed.root.with_name("before") / "bundle" / MANIFEST_NAME,
            undisturbed.root / "bundle" / MANIFEST_NAME,
        )
        if path.exists()
    ]
    if not _mixed(_constant(json.loads(manifest.read_bytes())), known):
        yield f"{WRONG}: the bundle verifies, and is neither the old nor the new one"


def _mixed(value: Any, known: Sequence[Any]) -> bool:
    """Whether every part of a document is of one of those that are known."""
    if value in known:
        return True
    if isinstance(value, dict):
        parts = [each for each in known if isinstance(each, dict)]
        return all(_mixed(value[key], [p[key] for p in parts if key in p]) for key in value)
    if isinstance(value, list):
        items = [item for each in known if isinstance(each, list) for item in each]
        return all(item in items for item in value)
    return False


def _leftovers(folder: Path) -> list[str]:
    """Files that nothing lists."""
    root = folder / "bundle"
    known = {"tried.toml", "prompts.txt", "table.json", f"bundle/{MANIFEST_NAME}"}
    if (root / MANIFEST_NAME).exists():
        known |= {f"bundle/{file.path}" for file in Bundle.read(root).manifest.files}
    return _others(folder, known)


def _others(folder: Path, known: Sequence[str] | set[str] | Snapshot) -> list[str]:
    found = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _LOCK
    ]
    return [f"left over: {name}" for name in found if name not in known]


def _changed(folder: Path, undisturbed: Undisturbed, names: Sequence[str] | Snapshot) -> list[str]:
    """Files that are neither as they were nor as they should become."""
    found = {name: folder / name for name in names if (folder / name).exists()}
    return [
        f"{WRONG}: {name} is neither the old nor the new one"
        for name, path in found.items()
        if hashlib.sha256(path.read_bytes()).hexdigest()
        not in (undisturbed.before.get(name), undisturbed.after.get(name))
    ]


@dataclass
class _StreamJudge:
    """A video that is the beginning of the undisturbed one, a state that continues it."""

    bundle: Path
    _frames: list[NDArray[np.uint8]] = field(default_factory=list)

    def __call__(self, folder: Path, undisturbed: Undisturbed, failed: bool) -> list[str]:
        video, state = folder / "video.mp4", folder / "state"
        left = _others(folder, {"video.mp4", "state"}) if failed else []
        if video.exists():
            left += self._judge_video(video, undisturbed.root / "video.mp4")
        if state.exists():
            left += self._judge_state(state, undisturbed.root / "state")
        return left

    def _judge_video(self, path: Path, whole: Path) -> Iterator[str]:
        wanted = list(read_video(whole))
        try:
            found = list(read_video(path))
        except (SanaRTError, av.FFmpegError) as error:
            yield f"the video does not play: {error}"
            return
        if not all(map(np.array_equal, found, wanted)) or len(found) > len(wanted):
            yield f"{WRONG}: the video is not a beginning of the whole one"

    def _judge_state(self, path: Path, whole: Path) -> Iterator[str]:
        last = State.load(whole).header
        try:
            state = State.load(path)
        except SanaRTError as error:
            yield f"the state does not load: {error.happened}"
            return
        if state.header.position == last.position:
            if path.read_bytes() != whole.read_bytes():
                yield f"{WRONG}: the state is another one"
            return
        with sana_rt.open(self.bundle, threads=1) as player:
            if not self._frames:
                request = last.request
                self._frames += [f for call in player.stream(request) for f in call]
            rest = [f for call in player.stream(resume=state) for f in call]
        decoded = state.header.position.decoded
        model = Bundle.read(self.bundle).manifest.model
        taken = geometry.video_frames(model, decoded) if decoded else 0
        if len(rest) != len(self._frames) - taken:
            yield f"{WRONG}: {len(rest)} frames after {taken} of {len(self._frames)}"
        elif not all(map(np.array_equal, rest, self._frames[taken:])):
            yield f"{WRONG}: the state continues another video"
