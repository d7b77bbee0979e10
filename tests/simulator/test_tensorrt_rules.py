"""The rules of TensorRT-RTX's documentation: kept, a plan plays; broken, it is noticed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver
from cuda.bindings.driver import CUresult
from tests.simulator.card import Card, ok
from tests.simulator.simulated_cuda import Device

from sana_rt.bundle import Bundle
from sana_rt.engines import plan_table
from sana_rt.runtime.backends import onnxruntime
from sana_rt.runtime.backends.base import Artifact
from sana_rt.runtime.backends.host import HostMemory
from sana_rt.tensors import resolve

GRAPH = "timestep"  # a small one: timestep [batch, frames] to modulation and embedding
TEXT = "text_encoder"  # its length is not fixed by the profile
SIZES = {"batch": 2, "frames": 5}
TEXT_SIZES = {"batch": 1, "length": 8}
STEPS = ("profile", "shapes", "memory", "addresses")  # before a run


class Messages:
    """A logger that keeps what it is told."""

    def __init__(self, trt: Any) -> None:
        class Logger(trt.ILogger):  # type: ignore[misc, name-defined] # the stand-in's
            def log(_self, severity: Any, msg: str) -> None:  # noqa: N805
                self.texts.append(f"{severity.name}: {msg}")

        self.texts: list[str] = []
        self.logger = Logger()


@dataclass
class Player:
    """A plan in the documented order of calls, of which a test leaves one out or spoils it."""

    trt: Any
    card: Card
    bundle: Bundle
    messages: Messages
    graph: str = GRAPH
    sizes: dict[str, int] | None = None
    strategy: str = "EAGER"
    user_managed: bool = True

    def __post_init__(self) -> None:
        self.sizes = self.sizes or SIZES
        self.plan = self.bundle.manifest.variants["fp32"].plans["sm120"][self.graph]
        self.blob = self.bundle.path(self.plan.path).read_bytes()
        self.runtime = self.trt.Runtime(self.messages.logger)
        self.engine = self.runtime.deserialize_cuda_engine(self.blob)
        self.config = self.engine.create_runtime_config()
        if self.user_managed:
            strategies = self.trt.ExecutionContextAllocationStrategy
            self.config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        kinds = self.trt.DynamicShapesKernelSpecializationStrategy
        self.config.dynamic_shapes_kernel_specialization_strategy = getattr(kinds, self.strategy)
        self.context = self.engine.create_execution_context(self.config)
        self.buffers: dict[str, int] = {}
        self.needed = 0
        self.arena = 0

    def shape(self, name: str) -> tuple[int, ...]:
        specs = {spec.name: spec for spec in (*self.plan.inputs, *self.plan.outputs)}
        return resolve(specs[name].shape, self.sizes)

    def nbytes(self, name: str) -> int:
        return int(np.prod(self.shape(name))) * (
            8 if self.graph == TEXT and name != "hidden_states" else 4
        )

    def profile(self) -> None:
        assert self.context.set_optimization_profile_async(0, int(self.card.stream))

    def shapes(self) -> None:
        for spec in self.plan.inputs:
            assert self.context.set_input_shape(spec.name, self.shape(spec.name))
        assert self.context.infer_shapes() == []

    def memory(self) -> None:
        self.needed = self.context.update_device_memory_size_for_shapes()
        if not self.arena:
            self.arena = int(self.card.memory(self.needed))
        self.context.set_device_memory(self.arena, self.needed)

    def addresses(self) -> None:
        for spec in (*self.plan.inputs, *self.plan.outputs):
            nbytes = self.nbytes(spec.name)
            self.buffers[spec.name] = int(self.card.memory(nbytes))
            ok(self.card.clear(self.buffers[spec.name], 0, nbytes=nbytes))
            assert self.context.set_tensor_address(spec.name, self.buffers[spec.name])

    def do(self, *steps: str) -> Player:
        for step in steps:
            getattr(self, step)()
        return self

    def ready(self) -> Player:
        return self.do(*STEPS)

    def run(self, stream: Any = None) -> bool:
        return bool(self.context.execute_async_v3(int(stream or self.card.stream)))

    def output(self, name: str = "embedding") -> np.ndarray:
        data = self.card.read(self.buffers[name], self.nbytes(name))
        return data.view(np.float32).reshape(self.shape(name))


Make = Callable[..., Player]


@pytest.fixture
def player(card: Card, plans: Path) -> Iterator[Make]:
    import tensorrt_rtx as trt

    bundle, messages = Bundle.open(plans), Messages(trt)
    yield lambda **settings: Player(trt, card, bundle, messages, **settings)
    driver.cuCtxSynchronize()


@pytest.fixture(scope="module")
def expected(plan_bundle: Path) -> np.ndarray:
    """The embedding of timesteps that are 0, by the backend `onnxruntime`."""
    bundle = Bundle.open(plan_bundle)
    graph = bundle.manifest.variants["fp32"].graphs[GRAPH]
    memory = HostMemory()
    backend = onnxruntime.OnnxRuntime("onnxruntime", memory, (onnxruntime.CPU, {}), 1)
    buffers = {
        spec.name: memory.allocate(spec.dtype, resolve(spec.shape, SIZES))
        for spec in (*graph.inputs, *graph.outputs)
    }
    inputs = {spec.name: buffers.pop(spec.name) for spec in graph.inputs}
    context = backend.open(Artifact(GRAPH, graph, bundle.path(graph.path)))
    context.bind(inputs, buffers).run()
    return memory.download(buffers["embedding"])


def test_a_plan_plays_as_its_graph_does_bit_for_bit(player: Make, expected: np.ndarray) -> None:
    play = player().ready()
    assert play.run()
    np.testing.assert_array_equal(play.output(), expected)
    assert np.abs(expected).max() > 0


def test_a_plan_is_captured_after_a_run_and_replayed(
    player: Make, card: Card, device: Device, expected: np.ndarray
) -> None:
    play = player().ready()
    assert play.run()
    card.begin()
    assert play.run()
    graph = card.graph()
    ok(card.clear(play.buffers["embedding"], 0, nbytes=play.nbytes("embedding")))
    device.mark()
    ok(card.launch(graph))
    np.testing.assert_array_equal(play.output(), expected)
    assert device.report().calls == {"cuGraphLaunch": 1, "cuMemcpyAsync": 1}


def test_weights_and_contexts_take_memory_and_give_it_back(player: Make, device: Device) -> None:
    play = player()
    labels = [block.partition("TensorRT, ")[2] for block in device.report().blocks]
    assert labels == [f"weights of {GRAPH}", f"a context of {GRAPH}"]
    assert device.report().device_bytes == play.plan.weight_bytes + 4096
    del play
    assert device.report().blocks == []


def test_the_arena_holds_nothing_after_a_run(player: Make, card: Card) -> None:
    play = player().ready()
    ok(card.clear(play.arena, 0, nbytes=play.needed))
    assert play.run()
    assert (card.read(play.arena, play.needed) == 0xFF).all()


def lose(device: Device) -> None:
    """What comes after undefined behaviour counts for nothing."""
    device.fail_everything(CUresult.CUDA_ERROR_UNKNOWN)


# --- Rules that only correct code keeps: breaking one is a violation ---


def without(*steps: str) -> Callable[[Player], None]:
    def breach(play: Player) -> None:
        play.do(*(step for step in STEPS if step not in steps)).run()

    return breach


def with_memory(change: Callable[[Player], tuple[int, int]]) -> Callable[[Player], None]:
    def breach(play: Player) -> None:
        play.ready()
        play.context.set_device_memory(*change(play))
        play.run()

    return breach


def misaligned(play: Player) -> tuple[int, int]:
    return int(play.card.memory(play.needed + 64)) + 64, play.needed


def stale_memory(play: Player) -> None:
    play.ready()
    ok(driver.cuMemFree(play.arena))
    play.card.forget(play.arena)
    play.run()


def stale_buffer(play: Player) -> None:
    play.ready()
    ok(driver.cuMemFree(play.buffers["embedding"]))
    play.run()


def small_buffer(play: Player) -> None:
    play.ready()
    play.context.set_tensor_address(
        "embedding", int(play.card.memory(play.nbytes("embedding") - 4))
    )
    play.run()


def host_buffer(play: Player) -> None:
    play.ready()
    play.context.set_tensor_address("embedding", 4096 * 256)
    play.run()


def misaligned_buffer(play: Player) -> None:
    play.ready()
    memory = int(play.card.memory(play.nbytes("embedding") + 4))
    play.context.set_tensor_address("embedding", memory + 4)


def bigger_shapes(play: Player) -> None:
    """The memory is what smaller shapes needed."""
    play.ready()
    play.context.set_input_shape("input_ids", (1, 1000))
    play.context.set_input_shape("attention_mask", (1, 1000))
    play.context.update_device_memory_size_for_shapes()
    play.run()


def unasked_size(play: Player) -> None:
    play.ready()
    for name in ("input_ids", "attention_mask"):
        play.context.set_input_shape(name, (1, 9))
    play.run()


def in_capture(change: Callable[[Player], object]) -> Callable[[Player], None]:
    def breach(play: Player) -> None:
        play.ready()
        play.card.begin()
        change(play)
        play.card.end()

    return breach


def two_threads(play: Player) -> None:
    play.ready()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with play.context._lock:
            entered.set()
            leave.wait(5)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(5)
    threading.Timer(0.05, leave.set).start()
    play.run()
    holder.join()


def context_gone(play: Player) -> None:
    play.ready()
    play.run()
    play.card.begin()
    play.run()
    graph = play.card.graph()
    play.context = None
    play.card.launch(graph)


def destroyed_while_running(play: Player) -> None:
    play.ready()
    play.run()
    play.context = None


def weights_gone(play: Player) -> None:
    play.context = play.engine = None
    play.runtime.defer_weights_loading = True
    play.engine = play.runtime.deserialize_cuda_engine(play.blob)
    play.context = play.engine.create_execution_context(play.config)
    play.engine.load_weights(play.blob)
    play.ready()
    play.run()
    play.engine.unload_weights()


def config_gone(play: Player) -> None:
    play.ready()
    play.config = None
    play.run()


def cache_gone(play: Player) -> None:
    play.config.set_runtime_cache(play.config.create_runtime_cache())
    play.context = play.engine.create_execution_context(play.config)
    play.ready()
    play.config.set_runtime_cache(None)
    play.run()


def other_stream(play: Player) -> None:
    """The arena is shared by runs that nothing orders."""
    play.ready()
    other = Player(play.trt, play.card, play.bundle, play.messages)
    other.arena = play.arena
    other.ready()
    play.run()
    other.run(play.card.new_stream())


def elsewhere(call: Callable[[], object]) -> None:
    """In a thread that has no current context."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def profiler(play: Player) -> Any:
    base = play.trt.IProfiler

    class Profiler(base):  # type: ignore[misc, valid-type] # the stand-in's
        def __init__(self) -> None:
            base.__init__(self)
            self.told: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.told.append((layer_name, ms))

    return Profiler()


def profiled(play: Player, *, emits: bool = False) -> Player:
    play.ready()
    play.context.profiler = profiler(play)
    play.context.enqueue_emits_profile = emits
    return play


VIOLATIONS: dict[str, tuple[str, Callable[[Player], object], dict[str, Any]]] = {
    "a shape before the profile": (
        "before the optimization profile",
        without("profile", "memory", "addresses"),
        {},
    ),
    "a size before the shapes": (
        "before profile and shapes",
        lambda play: play.do("profile").context.update_device_memory_size_for_shapes(),
        {},
    ),
    "no size asked for": ("before the size of its memory", unasked_size, {"graph": TEXT}),
    "no memory": ("a run in 0 of", without("memory"), {}),
    "memory too small": (
        "and it needs",
        with_memory(lambda play: (play.arena, play.needed - 256)),
        {},
    ),
    "memory smaller than shapes need": ("a run in", bigger_shapes, {"graph": TEXT}),
    "memory not aligned": ("not 256-byte aligned", with_memory(misaligned), {}),
    "memory larger than it is": ("leave", with_memory(lambda play: (play.arena, 1 << 30)), {}),
    "memory that is freed": ("freed", stale_memory, {}),
    "memory for a context that has its own": (
        "manages its own",
        Player.ready,
        {"user_managed": False},
    ),
    "memory of two runs at once": ("nothing orders them", other_stream, {}),
    "a buffer that is freed": ("freed", stale_buffer, {}),
    "a buffer that is too small": ("leave", small_buffer, {}),
    "a buffer in host memory": ("is not memory of the device", host_buffer, {}),
    "a buffer not aligned": ("not 256-byte aligned", misaligned_buffer, {}),
    "the default stream": (
        "no stream, or the default one",
        lambda play: play.ready() and play.context.execute_async_v3(0),
        {},
    ),
    "a new address in a capture": (
        "set_tensor_address while",
        in_capture(lambda play: play.context.set_tensor_address("embedding", 256)),
        {},
    ),
    "a new shape in a capture": ("set_input_shape while", in_capture(Player.shapes), {}),
    "new memory in a capture": (
        "set_device_memory while",
        in_capture(lambda play: play.context.set_device_memory(play.arena, play.needed)),
        {},
    ),
    "a capture of lazy kernels": (
        "LAZY kernels",
        in_capture(Player.run),
        {"strategy": "LAZY"},
    ),
    "a profiler in a capture": (
        "profiler while",
        in_capture(lambda play: setattr(play.context, "profiler", profiler(play))),
        {},
    ),
    "times of a run that is not over": (
        "before the run is over",
        lambda play: profiled(play).run() and play.context.report_to_profiler(),
        {},
    ),
    "two threads": ("two threads", two_threads, {}),
    "a replay without its context": ("a context of timestep, freed", context_gone, {}),
    "a context destroyed while it runs": ("destroyed while it runs", destroyed_while_running, {}),
    "weights unloaded while they are used": ("weights are unloaded while", weights_gone, {}),
    "a configuration that is gone": ("configuration or runtime cache is gone", config_gone, {}),
    "a runtime cache that is gone": ("configuration or runtime cache is gone", cache_gone, {}),
    "a run without a current context": (
        "no current CUDA context",
        lambda play: play.ready() and elsewhere(play.run),
        {},
    ),
    "a plan without a current context": (
        "without a current CUDA context",
        lambda play: elsewhere(lambda: play.runtime.deserialize_cuda_engine(play.blob)),
        {},
    ),
    "a cache without a current context": (
        "without a current CUDA context",
        lambda play: elsewhere(lambda: play.config.create_runtime_cache().deserialize(b"")),
        {},
    ),
}


@pytest.mark.parametrize("rule", VIOLATIONS)
def test_breaking_a_rule_is_noticed(rule: str, player: Make, device: Device) -> None:
    words, breach, settings = VIOLATIONS[rule]
    if settings.get("graph") == TEXT:
        settings = {**settings, "sizes": TEXT_SIZES}
    play = player(**settings)
    assert device.report().violations == []
    breach(play)
    driver.cuCtxSynchronize()
    found = device.forgive()
    assert any(words in violation for violation in found), found
    lose(device)


def test_a_profiler_is_told_of_all_kernels_when_it_is_asked_to_be(
    player: Make, device: Device
) -> None:
    play = profiled(player())
    table = plan_table.read(play.bundle.path(play.plan.log))
    assert play.run()
    assert play.context.profiler.told == []
    driver.cuStreamSynchronize(play.card.stream)
    assert play.context.report_to_profiler()
    told = play.context.profiler.told
    assert [name for name, _ in told] == [kernel.name for kernel in table.kernels]
    assert all(0 < before < after for (_, before), (_, after) in itertools.pairwise(told))


def test_a_run_that_tells_a_profiler_itself_waits_in_the_call(player: Make, device: Device) -> None:
    play = profiled(player(), emits=True)
    device.mark()
    assert play.run()
    assert device.report().calls["cuStreamSynchronize"] == 1
    assert play.context.profiler.told


def test_a_profiler_that_was_not_made_is_refused(player: Make) -> None:
    play = player()
    class_ = type("Profiler", (play.trt.IProfiler,), {"__init__": lambda _: None})
    with pytest.raises(TypeError, match=r"__init__\(\) must be called"):
        play.context.profiler = class_()


# --- Mistakes that TensorRT reports: False or None, and a message ---

REFUSED: dict[str, tuple[str, Callable[[Player], object]]] = {
    "an unknown profile": (
        "no profile 1",
        lambda play: play.context.set_optimization_profile_async(1, int(play.card.stream)),
    ),
    "an unknown input": (
        "no input 'x'",
        lambda play: play.context.set_input_shape("x", (1,)),
    ),
    "an unknown tensor": (
        "no tensor 'x'",
        lambda play: play.context.set_tensor_address("x", 256),
    ),
    "a shape outside of the profile": (
        "outside of the profile",
        lambda play: play.do("profile").context.set_input_shape("timestep", (2, 6)),
    ),
    "a run without shapes": (
        "the shapes of ['timestep'] are not set",
        lambda play: play.do("profile").run(),
    ),
    "a run without addresses": (
        "the addresses of",
        lambda play: play.do("profile", "shapes", "memory").run(),
    ),
    "bytes that are no plan": (
        "not valid here",
        lambda play: play.runtime.deserialize_cuda_engine(b"x" * 100),
    ),
    "a plan that was changed": (
        "its bytes were changed",
        lambda play: play.runtime.deserialize_cuda_engine(play.blob[:-1] + b"x"),
    ),
    "times without a profiler": (
        "there is no profiler",
        lambda play: play.ready().context.report_to_profiler(),
    ),
    "times without a run": (
        "nothing was run",
        lambda play: profiled(play).context.report_to_profiler(),
    ),
    "weights loaded twice": (
        "cannot be loaded",
        lambda play: play.engine.load_weights(play.blob),
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_refused_with_a_message(mistake: str, player: Make) -> None:
    words, make = REFUSED[mistake]
    play = player()
    assert not make(play)
    assert any(words in text for text in play.messages.texts), play.messages.texts


def test_what_is_missing_is_named(player: Make) -> None:
    play = player()
    play.profile()
    assert play.context.infer_shapes() == ["timestep"]


@pytest.mark.parametrize(
    ("strategy", "capturable"), [("LAZY", False), ("EAGER", True), ("NONE", True)]
)
def test_lazy_kernels_of_dynamic_shapes_are_not_capturable(
    strategy: str, capturable: bool, player: Make, card: Card
) -> None:
    context = player(strategy=strategy).context
    assert context.is_stream_capturable(int(card.stream)) == capturable
    assert not context.is_stream_capturable(0), "the default stream is not captured"


def test_kernels_that_are_not_compiled_yet_break_a_capture(player: Make, card: Card) -> None:
    play = player().ready()
    card.begin()
    assert not play.run()
    assert card.end()[0] == CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


# --- Headers, caches, weights ---


@pytest.mark.parametrize(
    "reason",
    [
        *("VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME"),
        *("INSUFFICIENT_GPU_MEMORY", "MALFORMED_ENGINE", "CUDA_ERROR"),
    ],
)
def test_each_reason_of_an_invalid_header_can_be_had(reason: str, player: Make) -> None:
    from tensorrt_rtx import _environment

    play = player()
    bit = play.trt.EngineInvalidityDiagnostics[reason]
    kinds, validity = play.trt.EngineValidity, play.runtime.get_engine_validity
    assert validity(play.blob[:64]) == (kinds.VALID, 0)
    _environment.refusals.add(bit)
    assert validity(play.blob[:64]) == (kinds.INVALID, bit)
    assert play.runtime.deserialize_cuda_engine(play.blob) is None


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, b"x", "MALFORMED_ENGINE"),
        (25, b"\x06", "VERSION_MISMATCH"),
        (32, b"\x04", "UNSUPPORTED_CC"),
    ],
)
def test_headers_are_read(at: int, value: bytes, reason: str, player: Make) -> None:
    play = player()
    header = play.blob[:at] + value + play.blob[at + 1 : 64]
    _, mask = play.runtime.get_engine_validity(header)
    assert mask == play.trt.EngineInvalidityDiagnostics[reason]


def test_another_card_does_not_take_the_plan(plans: Path, device: Device) -> None:
    import tensorrt_rtx as trt

    device.reset(capability=(8, 9))
    card = Card()
    plan = Bundle.open(plans).manifest.variants["fp32"].plans["sm120"][GRAPH]
    header = (plans / plan.path).read_bytes()[:64]
    _, mask = trt.Runtime(trt.Logger()).get_engine_validity(header)
    assert mask == trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC
    card.close()


def test_a_runtime_cache_spares_compiling(player: Make, device: Device) -> None:
    from tensorrt_rtx import _environment

    play = player()
    assert _environment.compiled == [GRAPH]
    cache = play.config.create_runtime_cache()
    play.config.set_runtime_cache(cache)
    for _ in range(2):
        assert play.engine.create_execution_context(play.config) is not None
    assert _environment.compiled == [GRAPH] * 2, "the second context found the first one's kernels"

    kept = bytes(cache.serialize())
    again = play.config.create_runtime_cache()
    assert again.deserialize(kept)
    play.config.set_runtime_cache(again)
    assert play.engine.create_execution_context(play.config) is not None
    assert _environment.compiled == [GRAPH] * 2
    assert not again.deserialize(kept[:-5])
    assert not again.deserialize(b"")
    del play, cache, again


def test_a_runtime_cache_of_another_card_is_not_taken(player: Make, device: Device) -> None:
    play = player()
    kept = bytes(play.config.create_runtime_cache().serialize())
    device._library.simCard(b"another card", 12, 0, 13010, 1 << 30, 1)
    assert not play.config.create_runtime_cache().deserialize(kept)


def test_weights_are_loaded_later_and_unloaded(player: Make, device: Device) -> None:
    play = player()
    play.context = play.engine = None
    play.runtime.defer_weights_loading = True
    play.engine = play.runtime.deserialize_cuda_engine(play.blob)
    play.context = play.engine.create_execution_context(play.config)
    assert not play.engine.weights_loaded
    play.ready()
    assert not play.run(), "there are no weights"
    assert play.engine.load_weights(play.blob)
    assert play.run()
    play.output()
    assert play.engine.unload_weights()
    assert not any("weights" in block for block in device.report().blocks)
    assert not play.engine.unload_weights()


@pytest.mark.parametrize("nth", [1, 2])
def test_an_allocation_that_fails_is_told(nth: int, player: Make, device: Device) -> None:
    play = player()
    device.fail("allocation", nth)
    engine = play.runtime.deserialize_cuda_engine(play.blob)
    context = engine and engine.create_execution_context(play.config)
    assert context is None
    assert "OutOfMemory" in play.messages.texts[-1]
