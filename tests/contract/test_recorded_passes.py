"""The file between the runtime and calibration: what is in it, and what is wrong with others."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from sana_rt.bundle import Bundle
from sana_rt.errors import CalibrationError, StorageError
from sana_rt.quantize.passes import Pass, RecordedPasses
from sana_rt.recorded import HEADER, Header
from sana_rt.runtime import recording
from sana_rt.runtime.backends.base import Binding
from sana_rt.runtime.backends.buffers import Memory
from sana_rt.runtime.observers import Observer
from sana_rt.runtime.session import Session
from sana_rt.tensors import resolve

PROMPTS = ("a red circle", "a green square moving down")
STEPS = 2


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture(scope="module")
def path(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("passes") / "passes.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "STEPS", STEPS)
        record(path, bundle)
    return path


def record(path: Path, bundle: Bundle) -> None:
    recording.record(path, bundle, "fp32", PROMPTS, "1" * 64, threads=1, progress=lambda *_: None)


@pytest.fixture
def passes(path: Path, bundle: Bundle) -> Iterator[RecordedPasses]:
    with RecordedPasses.open(path, bundle.manifest.variant("fp32").source.sha256) as passes:
        yield passes


class Blocks(Observer):
    """What the blocks are given, kept in memory."""

    def __init__(self) -> None:
        self.inputs: list[tuple[str, dict[str, np.ndarray]]] = []

    def before(self, binding: Binding, memory: Memory) -> None:
        if binding.graph.startswith(("block_", "final_layer")):
            given = {name: memory.download(each) for name, each in binding.inputs.items()}
            self.inputs.append((binding.graph, given))


def test_passes_are_what_the_blocks_are_given(bundle: Bundle, passes: RecordedPasses) -> None:
    """Against an observer that keeps everything: each pass is four blocks and the final layer."""
    blocks = Blocks()
    with Session.open(bundle.root, threads=1, observers=(blocks,)) as session:
        for seed, prompt in enumerate(PROMPTS):
            request = session.request(
                prompt=prompt, seed=seed, height=128, width=128, num_frames=17,
                num_inference_steps=STEPS,
            )  # fmt: skip
            list(session.latents(request))
    assert len(passes) == len(PROMPTS) * STEPS
    assert len(blocks.inputs) == len(passes) * 5
    for number, recorded in enumerate(passes):
        played = dict(blocks.inputs[5 * number : 5 * number + 5])
        for index in range(4):
            given, read = played[f"block_{index:02d}"], recorded.of_block(index)
            assert set(given) == set(read)
            for name in set(given) - ({"tokens"} if index else set()):
                np.testing.assert_array_equal(read[name], given[name])
        np.testing.assert_array_equal(recorded.embedding, played["final_layer"]["embedding"])


def test_the_header_says_what_was_played(bundle: Bundle, passes: RecordedPasses) -> None:
    header = passes.header
    assert (header.checkpoint, header.variant) == (
        bundle.manifest.variant("fp32").source.sha256,
        "fp32",
    )
    assert (header.prompts, header.blocks) == ("1" * 64, 4)
    assert [each.prompt for each in header.passes] == [0, 0, 1, 1]
    assert [each.timestep for each in header.passes] == [each.timestep for each in passes]
    assert passes[0].timestep > passes[1].timestep > 0


def test_passes_are_a_sequence(passes: RecordedPasses) -> None:
    assert [each.timestep for each in passes[:2]] == [passes[0].timestep, passes[1].timestep]
    assert passes[-1].timestep == passes[3].timestep
    with pytest.raises(IndexError):
        passes[4]
    assert len(passes[0].text) == 4


def test_keys_and_values_are_read_when_they_are_needed(
    passes: RecordedPasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    one = RecordedPasses.read
    monkeypatch.setattr(
        RecordedPasses, "read", lambda self, name: read.append(name) or one(self, name)
    )
    first: Pass = passes[0]
    assert not [name for name in read if "text" in name and "bias" not in name]
    first.of_block(2)
    assert read[-2:] == ["prompt_00000/block_02/text_k", "prompt_00000/block_02/text_v"]


def test_the_same_passes_are_the_same_file(
    bundle: Bundle, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "STEPS", STEPS)
    record(tmp_path / "again.npz", bundle)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_an_interrupted_recording_leaves_no_file(bundle: Bundle, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recording.record(
            tmp_path / "passes.npz", bundle, "fp32", PROMPTS, "", threads=1, progress=interrupt
        )
    assert not list(tmp_path.iterdir())


def test_another_checkpoint_is_refused(path: Path) -> None:
    with (
        pytest.raises(CalibrationError, match=r"(?s)recorded from the checkpoint.*ffff"),
        RecordedPasses.open(path, "f" * 64),
    ):
        pass


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError), RecordedPasses.open(tmp_path / "none.npz", ""):
        pass


def changed(path: Path, folder: Path, header: Header, without: str = "") -> Path:
    """A copy with another header, and one member less."""
    copy = folder / "changed.npz"
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays if name not in (HEADER, without)}
    np.savez(copy, **kept, **{HEADER: np.frombuffer(msgspec.json.encode(header), np.uint8)})
    return copy


def read_all(path: Path, checkpoint: str) -> None:
    with RecordedPasses.open(path, checkpoint) as passes:
        for each in passes:
            for index in range(len(each.text)):
                each.of_block(index)


@pytest.mark.parametrize(
    "fields",
    [{"format": "sana-rt-stream"}, {"format_version": 2}, {"blocks": 0}, {"passes": "none"}],
)
def test_another_format_is_refused(
    path: Path, passes: RecordedPasses, tmp_path: Path, fields: dict[str, object]
) -> None:
    header = msgspec.structs.replace(passes.header, **fields)
    with pytest.raises(CalibrationError, match="not a readable file of recorded passes"):
        read_all(changed(path, tmp_path, header), passes.header.checkpoint)


def test_a_file_without_passes_is_refused(
    path: Path, passes: RecordedPasses, tmp_path: Path
) -> None:
    header = msgspec.structs.replace(passes.header, passes=())
    with pytest.raises(CalibrationError, match="has no passes"):
        read_all(changed(path, tmp_path, header), passes.header.checkpoint)


@pytest.mark.parametrize(
    "member", ["pass_00001/tokens", "pass_00003/embedding", "prompt_00001/block_03/text_v"]
)
def test_a_missing_tensor_is_damage(
    path: Path, passes: RecordedPasses, tmp_path: Path, member: str
) -> None:
    copy = changed(path, tmp_path, passes.header, without=member)
    with pytest.raises(CalibrationError, match=rf"not a readable file.*{member}"):
        read_all(copy, passes.header.checkpoint)


def test_flipped_bits_and_a_lost_end_are_damage(
    path: Path, passes: RecordedPasses, tmp_path: Path
) -> None:
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = {info.filename: info for info in archive.infolist()}
    place = places["prompt_00001/block_03/text_k.npy"]
    copy = tmp_path / "copy.npz"
    for offset in (300, place.file_size - 1):  # of the numbers, the last byte included
        flipped = bytearray(data)
        flipped[place.header_offset + 80 + offset] ^= 1
        copy.write_bytes(flipped)
        with pytest.raises(CalibrationError, match="not a readable file"):
            read_all(copy, passes.header.checkpoint)
    for end in (0, 100, len(data) // 2, len(data) - 1):
        copy.write_bytes(data[:end])
        with pytest.raises(CalibrationError, match="not a readable file"):
            read_all(copy, passes.header.checkpoint)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(CalibrationError, match="not a readable file"):
        read_all(tmp_path / "array.npy", passes.header.checkpoint)


def test_every_pass_has_the_shapes_of_the_block(bundle: Bundle, passes: RecordedPasses) -> None:
    side = recording.SIDE
    block = bundle.manifest.variant("fp32").graphs["block_00"]
    dims = {"batch": 2, "frames": recording.FRAMES, "rows": side, "columns": side}
    dims["length"] = bundle.manifest.model.text.max_tokens
    for spec in block.inputs:
        assert passes[0].of_block(0)[spec.name].shape == resolve(spec.shape, dims)
