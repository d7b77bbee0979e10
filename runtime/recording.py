"""What the blocks of a transformer are given while prompts are played, as a file."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from sana_rt import geometry, graph_names
from sana_rt.bundle import Bundle
from sana_rt.errors import NonFiniteError
from sana_rt.files import writing
from sana_rt.model_spec import ModelSpec
from sana_rt.recorded import EMBEDDING, HEADER, TEXT, Header, RecordedPass, pass_member, text_member
from sana_rt.runtime.backends.base import Binding
from sana_rt.runtime.backends.buffers import HostArray, Memory
from sana_rt.runtime.observers import Observer
from sana_rt.runtime.request import Request, for_model
from sana_rt.runtime.session import Session

#: Steps of a played prompt; at each of them the blocks see tokens of another noise level.
STEPS: Final = 4
#: Latent frames and, in units of the smallest, the height and width of a played clip. Small, so
#: that a CPU can play it: magnitudes are of tokens, of which even such a clip has hundreds.
FRAMES: Final = 5
SIDE: Final = 8


def record(
    path: Path,
    bundle: Bundle,
    variant: str,
    prompts: Sequence[str],
    sha256: str,
    *,
    threads: int | None,
    progress: Callable[[int, int], None],
) -> None:
    """Play short clips of ``prompts`` on ONNX Runtime and write the passes to ``path``.

    ``sha256`` is of the file that the prompts are from. Memory does not grow with the prompts.
    What is recorded decides how weights are quantized, so the graphs' files are hashed first:
    raises :class:`BundleFileError` where one is not the listed one.
    """
    model = bundle.manifest.model
    for graph in bundle.manifest.variant(variant).graphs.values():
        bundle.check_graph(graph)
    with writing(path) as file, zipfile.ZipFile(file, "w") as archive:
        recorder = Recorder(archive, model.transformer.num_layers)
        with Session.open(
            bundle.root,
            variant=variant,
            backend="onnxruntime",
            threads=threads,
            observers=(recorder,),
        ) as session:
            for index, prompt in enumerate(prompts):
                progress(index, len(prompts))
                # What is recorded tells which layer overflows; the latents do not.
                with contextlib.suppress(NonFiniteError):
                    for _ in session.latents(_request(model, prompt, index)):
                        pass
        source = bundle.manifest.variant(variant).source
        recorder.finish(source.sha256, variant, sha256)


def _request(model: ModelSpec, prompt: str, seed: int) -> Request:
    height, width = (SIDE * multiple for multiple in model.size_multiples)
    given: dict[str, Any] = {
        "prompt": prompt,
        "seed": seed,
        "height": height,
        "width": width,
        "num_frames": geometry.video_frames(model, FRAMES),
    }
    if model.streaming is None:
        given["num_inference_steps"] = STEPS
    return for_model(model, given)


class Recorder(Observer):
    """Writes a pass whenever the first block runs, and the text when its prompt is new."""

    def __init__(self, archive: zipfile.ZipFile, blocks: int) -> None:
        self._archive, self._blocks = archive, blocks
        self._passes: list[RecordedPass] = []
        self._inputs: tuple[str, ...] = ()
        self._prompt = -1
        self._unwritten: set[int] = set()  # blocks whose keys and values are still to come
        self._timestep = 0.0
        self._embedding: HostArray = np.zeros(0, np.float32)

    def before(self, binding: Binding, memory: Memory) -> None:
        """Keep what a block is given."""
        index = graph_names.block_index(binding.graph)
        if index == 0:
            self._write_pass(binding, memory)
        if index in self._unwritten:
            for name in TEXT:
                array = memory.download(binding.inputs[name])
                self._write(text_member(self._prompt, index, name), array)
            self._unwritten.remove(index)

    def after(self, binding: Binding, memory: Memory) -> None:
        """Know what the next passes are made for."""
        if binding.graph == graph_names.PROMPT:
            self._prompt += 1
            self._unwritten = set(range(self._blocks))
        elif binding.graph == graph_names.TIMESTEP:
            self._timestep = float(memory.download(binding.inputs["timestep"]).max())
            self._embedding = memory.download(binding.outputs["embedding"])

    def finish(self, checkpoint: str, variant: str, prompts: str) -> None:
        """Write the header; see :class:`Header`."""
        played = (prompts, self._blocks, self._inputs, tuple(self._passes))
        header = Header("sana-rt-passes", 1, checkpoint, variant, *played)
        self._write(HEADER, np.frombuffer(msgspec.json.encode(header), np.uint8))

    def _write_pass(self, binding: Binding, memory: Memory) -> None:
        number = len(self._passes)
        inputs = {name: one for name, one in binding.inputs.items() if name not in TEXT}
        self._inputs = tuple(inputs)
        for name, buffer in inputs.items():
            self._write(pass_member(number, name), memory.download(buffer))
        self._write(pass_member(number, EMBEDDING), self._embedding)
        self._passes.append(RecordedPass(self._timestep, self._prompt))

    def _write(self, name: str, array: HostArray) -> None:
        """Add a member; its date is fixed, so that the same passes are the same file."""
        info = zipfile.ZipInfo(f"{name}.npy")
        with self._archive.open(info, "w", force_zip64=True) as member:
            np.lib.format.write_array(member, array, allow_pickle=False)
