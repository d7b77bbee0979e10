"""Programs that are the same at every step, and observers that see each run of a graph."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sana_rt.bundle import Bundle
from sana_rt.errors import UsageError
from sana_rt.runtime.backends import onnxruntime
from sana_rt.runtime.backends.base import (
    Backend,
    BackendOptions,
    Binding,
    Clear,
    Command,
    Copy,
    Program,
)
from sana_rt.runtime.backends.buffers import Buffer, Memory
from sana_rt.runtime.backends.host import HostMemory
from sana_rt.runtime.graphs import Graphs
from sana_rt.runtime.observers import Observer
from sana_rt.runtime.session import Session

STEPS = 3
BLOCKS = ("block_00", "block_01", "block_02", "block_03")
STEP = ("timestep", "patch_embed", *BLOCKS, "final_layer", "solver", "copy", "copy", "copy")
COMMIT = (
    "timestep",
    "patch_embed",
    *(name for block in BLOCKS for name in (block, "copy", "copy", "copy")),
)


def word(command: Command) -> str:
    return command.graph if isinstance(command, Binding) else type(command).__name__.lower()


class CountingProgram(Program):
    """Counts its runs, as what a capture would replay."""

    def __init__(self, commands: Iterable[Command]) -> None:
        super().__init__(commands)
        self.runs = 0

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(map(word, self.commands))

    def run(self) -> None:
        self.runs += 1
        super().run()


class Watch(Observer):
    """Keeps what was done, in order."""

    def __init__(self) -> None:
        self.moments: list[str] = []
        self.before_runs: list[str] = []
        self.after_runs: list[str] = []

    def begin(self, moment: str) -> None:
        self.moments.append(moment)

    def before(self, binding: Binding, _: Memory) -> None:
        self.before_runs.append(binding.graph)

    def after(self, binding: Binding, _: Memory) -> None:
        assert self.before_runs[-1] == binding.graph
        self.after_runs.append(binding.graph)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[CountingProgram]:
    made: list[CountingProgram] = []

    def program(self: Backend, commands: Iterable[Command]) -> Program:
        made.append(CountingProgram(commands))
        return made[-1]

    monkeypatch.setattr(Backend, "program", program)
    return made


def play(session: Session, **options: object) -> NDArray[np.float32]:
    given = {"height": 32, "width": 32, "num_inference_steps": STEPS, "prompt": "a circle"}
    request = session.request(**(given | options))
    return np.concatenate([chunk.latents for chunk in session.latents(request)], axis=2)


def test_a_step_is_one_program_that_never_changes(
    small_bundle: Path, programs: list[CountingProgram]
) -> None:
    """Two copies of the latents with guidance: the batch is (negative, positive)."""
    with Session.open(small_bundle, threads=1) as session:
        play(session, num_frames=5)
    used = {program.words: program.runs for program in programs if program.runs}
    assert used == {("rope", "clear"): 1, STEP: STEPS}


def test_chunks_share_programs_by_length(
    causal_bundle: Path, programs: list[CountingProgram]
) -> None:
    """3 + 2 + 2 latent frames: two lengths, three chunks of four steps, two commits."""
    with Session.open(causal_bundle, threads=1) as session:
        play(session, num_frames=25, num_inference_steps=4)
    unguided = STEP[:-1]
    runs = [(program.words, program.runs) for program in programs]
    assert sorted(runs) == sorted(
        [
            (("rope", "clear"), 1), (unguided, 4), (COMMIT, 1),
            (("rope", "clear"), 2), (unguided, 8), (COMMIT, 1),
        ]
    )  # fmt: skip


def test_observers_see_every_run_of_a_program(
    small_bundle: Path, programs: list[CountingProgram]
) -> None:
    """And a backend is not asked to replay what would be hidden from them."""
    watch = Watch()
    with Session.open(small_bundle, threads=1, observers=(watch,)) as session:
        play(session, num_frames=5)
    graphs = [name for name in STEP if name != "copy"]
    encoded = ["text_encoder", "text_encoder", "prompt"]
    assert watch.after_runs == watch.before_runs == [*encoded, "rope", *graphs * STEPS]
    assert watch.moments[0] == "encoding the prompts"
    assert [moment for moment in watch.moments if "step" in moment][-1].startswith("step 3 of 3")
    assert not any(program.runs for program in programs)


def test_observers_change_nothing_unless_they_want_to(small_bundle: Path) -> None:
    class Teacher(Observer):
        def after(self, binding: Binding, memory: Memory) -> None:
            if binding.graph == "solver":
                latents = binding.outputs["latents_out"]
                memory.upload(latents, np.full(latents.shape, 0.5, np.float32))

    clips = []
    for observers in ((), (Watch(),), (Teacher(),)):
        with Session.open(small_bundle, threads=1, observers=observers) as session:
            clips.append(play(session, num_frames=5))
    np.testing.assert_array_equal(clips[0], clips[1])
    assert (clips[2] == 0.5).all(), "what the observer wrote is what the next step reads"
    assert not (clips[0] == 0.5).any()


def test_commands_of_a_program_are_done_in_order() -> None:
    memory = HostMemory()
    one, other = (memory.allocate("float32", (2,)) for _ in range(2))
    memory.upload(one, np.float32([1, 2]))
    Program([Copy(memory, other, one), Clear(memory, one)]).run()
    assert (memory.download(one).tolist(), memory.download(other).tolist()) == ([0, 0], [1, 2])


class Nothing(Binding):
    def __init__(self, outputs: dict[str, Buffer]) -> None:
        super().__init__("nothing", {}, outputs)

    def run(self) -> None:
        pass


def test_one_player_at_a_time(small_bundle: Path) -> None:
    """Who takes over brings observers of its own; those of the session stay."""
    always, own, later = Watch(), Watch(), Watch()
    backend = onnxruntime.cpu(BackendOptions(threads=1))
    graphs = Graphs(Bundle.open(small_bundle), "fp32", backend, (always,))
    for player, watch in (("first", own), ("second", later)):
        graphs.take_over(player, watch)
        graphs.begin(player, f"the {player}'s")
        graphs.run(Nothing({}))
    with pytest.raises(UsageError, match="Another clip was started"):
        graphs.begin("first", "more")
    assert always.moments == ["the first's", "the second's"]
    assert (own.moments, later.moments) == (["the first's"], ["the second's"])
    assert (always.after_runs, own.after_runs) == (["nothing", "nothing"], ["nothing"])


def test_a_closed_session_has_given_everything_back(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when an error ends it; a clip that was being made does not go on."""
    closed: list[Memory] = []

    def close(memory: Memory) -> None:
        closed.append(memory)

    monkeypatch.setattr(HostMemory, "close", close)
    session = Session.open(small_bundle, threads=1)
    clip = session.generate(session.request(height=32, width=32, num_frames=5))
    next(clip)
    with pytest.raises(KeyboardInterrupt), session:
        raise KeyboardInterrupt
    assert session.graphs.opened == ()
    assert closed == [session.graphs.memory]
    with pytest.raises(UsageError, match="was closed"):
        next(clip)
