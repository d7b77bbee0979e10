"""The adapter: flavours, targets, and that nothing of one flavour is asked of the other."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from sana_rt import interrupts
from sana_rt.engines import trt_api
from sana_rt.engines.cards import TARGETS
from sana_rt.engines.trt_api import FLAVOURS, BuildLog, BuildRequest, TensorRT
from sana_rt.errors import MissingDependencyError, TargetError

API = json.loads((Path(__file__).parents[2] / "data/tensorrt_api.json").read_text())
SHAPES = {"timestep": ((2, 3, 64),) * 3}


@pytest.fixture
def linear(graphs: ModuleType, tmp_path: Path) -> Path:
    path = tmp_path / "linear.onnx"
    onnx.save(graphs.linear(), path)
    return path


class Only:
    """TensorRT-RTX without all that TensorRT has not: what the flavours share, for real."""

    def __init__(self, target: object) -> None:
        self.__dict__["target"] = target

    def __getattr__(self, name: str) -> Any:
        if name in API["missing"]:
            raise AttributeError(f"TensorRT has no {name}")
        value = getattr(self.target, name)
        is_interface = isinstance(value, type) and name.startswith("I")
        plain = is_interface or isinstance(value, int | str | bool)
        return value if plain else Only(value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in API["missing"]:
            raise AttributeError(f"TensorRT has no {name}")
        setattr(self.target, name, _bare(value))

    def __call__(self, *args: Any) -> Any:
        result = self.target(*map(_bare, args))
        return result if isinstance(result, int | str | bool | None) else Only(result)

    def __int__(self) -> int:
        return int(self.target)


def _bare(value: Any) -> Any:
    return value.target if isinstance(value, Only) else value


def test_builds_for_a_card_that_is_not_there(linear: Path, rtx: TensorRT) -> None:
    log, phases, plan = BuildLog(), list[str](), bytearray()

    def write(data: bytes) -> int:
        plan.extend(data)
        return len(data)

    rtx.build(BuildRequest(linear, rtx.target("sm120"), SHAPES), write, log, phases.append)
    assert plan.startswith(b"vtrt"), "TensorRT's plans do"
    assert "Building engine" in phases
    assert "[VERBOSE] Layers:" in log.text
    assert not log.errors


def test_the_second_flavour_uses_nothing_that_it_has_not(
    linear: Path, rtx: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT itself is not here: its part of the API is, which TensorRT-RTX has as well."""
    logger = trt_api._logger("rtx")
    monkeypatch.setattr(trt_api, "_logger", lambda _flavour: logger)
    shared = Only(importlib.import_module("tensorrt_rtx"))
    monkeypatch.setitem(sys.modules, "tensorrt", shared)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="num_compute_capabilities"):
        shared.Builder(logger.interface).create_builder_config().num_compute_capabilities = 1

    tensorrt = TensorRT("trt")
    written: list[int] = []
    request = BuildRequest(linear, tensorrt.target("current"), SHAPES)
    log = BuildLog()
    tensorrt.build(request, lambda data: written.append(len(data)) or len(data), log, print)
    assert sum(written) > 1000
    assert tensorrt.version == rtx.version


def test_a_flavour_that_is_not_installed_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # type: ignore[arg-type]
    with pytest.raises(MissingDependencyError) as caught:
        TensorRT("trt")
    assert FLAVOURS["trt"].install in str(caught.value)
    assert "pip install" in str(caught.value)


def test_targets_that_a_flavour_does_not_build_for_are_refused(rtx: TensorRT) -> None:
    with pytest.raises(TargetError, match="'rtx' does not build for 'sm90'") as caught:
        rtx.target("sm90")
    assert "sm120" in str(caught.value)
    for name in FLAVOURS["rtx"].targets:
        assert rtx.target(name) is TARGETS[name]


def test_the_library_has_every_target(rtx: TensorRT) -> None:
    members = importlib.import_module("tensorrt_rtx").ComputeCapability
    for name in FLAVOURS["rtx"].targets:
        assert hasattr(members, TARGETS[name].member)


@pytest.mark.parametrize("error", [OSError("no room"), KeyboardInterrupt()])
def test_an_exception_in_a_callback_ends_the_build_and_is_raised(
    linear: Path, rtx: TensorRT, error: BaseException
) -> None:
    def fail(_: object) -> int:
        raise error

    request = BuildRequest(linear, rtx.target("sm120"), SHAPES)
    with pytest.raises(type(error)):
        rtx.build(request, fail, BuildLog(), lambda _: None)
    with pytest.raises(type(error)):
        rtx.build(request, len, BuildLog(), fail)


def test_each_build_has_its_own_log(linear: Path, rtx: TensorRT) -> None:
    """Even while objects of a former build live, to which TensorRT ties its logger."""
    request = BuildRequest(linear, rtx.target("sm120"), SHAPES)
    alive = rtx._api.Builder(trt_api._logger("rtx").interface)
    first, second = BuildLog(), BuildLog()
    for log in (first, second):
        rtx.build(request, len, log, lambda _: None)
    assert alive is not None
    for log in (first, second):
        assert log.text.count("Layers:\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_a_build(linear: Path, number: int) -> None:
    """Wherever it arrives: TensorRT's own frames would lose the exception."""
    tensorrt, written = TensorRT("rtx"), []
    request = BuildRequest(linear, TARGETS["sm120"], SHAPES)
    with pytest.raises(KeyboardInterrupt), interrupts.terminable():
        tensorrt.build(
            request, lambda data: written.append(data) or len(data), BuildLog(), _kill(number)
        )
    assert written == []


def _kill(number: int) -> Callable[[str], None]:
    """Send a signal in the first phase of a build."""
    phases: list[str] = []

    def phase(name: str) -> None:
        phases.append(name)
        if len(phases) == 1:
            os.kill(os.getpid(), number)

    return phase
