"""A report that no machine made, for what reads and shows reports."""

from __future__ import annotations

import msgspec
import pytest

from sana_rt.benchmarks.speed import report as reports
from sana_rt.benchmarks.speed.bounds import BoundCard, GraphShare
from sana_rt.benchmarks.speed.harness import Measured, Rounds
from sana_rt.benchmarks.speed.report import Report, SideReport
from sana_rt.benchmarks.speed.turn import GraphTime, Turn, Work
from sana_rt.export.seeded import SMALL
from sana_rt.runtime.request import for_model

REQUESTS = tuple(
    for_model(SMALL, {"prompt": prompt, "seed": seed}) for seed, prompt in enumerate(("a <b>", "c"))
)
WORK = Work.of(SMALL, "0" * 64, REQUESTS, passes=16, decoded=34)


def turn(slowness: float, *, backend: str = "onnxruntime") -> Turn:
    """A turn of two clips; it takes ``slowness`` times as long as one of the baseline."""
    seconds = {"load": (3.0,), "warm_up": (9.0,), "text": (0.1, 0.1), "denoise": (2.0, 2.2)}
    seconds |= {"step": (0.25,) * 14, "decode": (1.0, 1.1), "clip": (3.1, 3.4)}
    if backend == "onnxruntime":
        seconds |= {"compile": (1.5,)}
    slower = {name: tuple(slowness * each for each in values) for name, values in seconds.items()}
    return Turn(WORK, backend, "cpu", "float32", slower, plans=False, device_bytes=None, card=None)


@pytest.fixture
def rounds() -> Rounds:
    """Three rounds, in the last of which the machine was ten times slower."""
    return Rounds(
        {
            name: [
                Measured(index, turn(slowness * busy, backend=backend), 100 << 20, ())
                for index, busy in enumerate((1.0, 1.0, 10.0))
            ]
            for name, slowness, backend in (
                ("fp32", 1.0, "onnxruntime"),
                ("nvfp4-max", 0.5, "onnxruntime"),
                ("diffusers-eager", 2.0, "diffusers, eager"),
            )
        },
        {"diffusers-compiled": "It took longer than its limit of 5 s."},
    )


@pytest.fixture
def report(rounds: Rounds) -> Report:
    graphs = (
        GraphShare(GraphTime("block_00", 8, 4.0, 0.5), 0.4, 0.25, None),
        GraphShare(GraphTime("block_01", 8, 4.0, 0.5), 0.4, 0.35, None),
        GraphShare(GraphTime("solver", 8, 2.0, 0.25), 0.2, None, None),
    )
    bound = BoundCard("GeForce RTX 5090", "sm120", measured=False)
    sides = tuple(
        SideReport(
            name=name,
            kind="diffusers" if name.startswith("diffusers") else "variant",
            backend=turns[0].turn.backend,
            device="cpu",
            dtype="float32",
            recipe=None,
            boundaries=reports.measurements(rounds, name),
            host_peak_bytes=100 << 20,
            device_bytes=None,
            readings=None,
            latents_difference=0.0,
            graphs=() if name.startswith("diffusers") else graphs,
            bound=None if name.startswith("diffusers") else bound,
        )
        for name, turns in rounds.turns.items()
    )
    return Report(
        format=reports.FORMAT,
        format_version=reports.FORMAT_VERSION,
        created_by="sana-rt 0.0",
        began="2026-01-02T03:04:05+00:00",
        command="sana-rt bench bundle",
        quick=False,
        rule=reports.RULE,
        work=WORK,
        prompts=tuple(each.prompt for each in REQUESTS),
        seeds=tuple(each.seed for each in REQUESTS),
        rounds=3,
        conditions={"processor": "one", "cores": 2, "threads": 1, "load_average": 0.5},
        card=None,
        no_card="no driver",
        sides=sides,
        not_measured=rounds.failures,
    )


def scaled(report: Report, by: float) -> Report:
    """The same measurements, each ``by`` times as long."""

    def longer(value: object) -> object:
        if isinstance(value, float):
            return value * by
        if isinstance(value, dict):
            return {key: longer(each) for key, each in value.items()}
        return [longer(each) for each in value] if isinstance(value, list | tuple) else value

    sides = []
    for side in report.sides:
        times = {
            name: {**each, "spread": longer(each["spread"]), "rounds": longer(each["rounds"])}
            for name, each in msgspec.to_builtins(side.boundaries).items()
        }
        kind = dict[str, reports.Measurement]
        sides.append(msgspec.structs.replace(side, boundaries=msgspec.convert(times, kind)))
    return msgspec.structs.replace(report, sides=tuple(sides))
