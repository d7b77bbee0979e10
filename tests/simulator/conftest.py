"""Tests here run on the simulated device, in processes of their own (see child.py)."""

from __future__ import annotations

import gc
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.conftest import kept
from tests.simulator.child import Child, is_child, real_environment

from sana_rt import freshness

if TYPE_CHECKING:
    from tests.simulator.card import Card
    from tests.simulator.simulated_cuda import Device

_CHILDREN = pytest.StashKey[dict[Path, Child]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Let the child of the test's file run it."""
    if is_child() or Path(__file__).parent not in item.path.parents:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[pytest.TestReport]:
    children = item.config.stash.setdefault(_CHILDREN, {})
    goes_on = nextitem is not None and nextitem.path == item.path
    try:
        if item.path not in children:
            children[item.path] = Child(item.config, item.path)
        deserialize = item.config.hook.pytest_report_from_serializable
        following = nextitem.nodeid if goes_on and nextitem is not None else None
        for data in children[item.path].run(item.nodeid, following):
            yield deserialize(config=item.config, data=data)
    except pytest.skip.Exception as skipped:
        place = (str(item.path), item.location[1], str(skipped))
        yield _report(item, "skipped", place)
    except ChildProcessError as error:
        if item.path in children:
            children.pop(item.path).close()
        yield _report(item, "failed", str(error))
    if not goes_on and item.path in children:
        children.pop(item.path).close()


def _report(item: pytest.Item, outcome: str, why: object) -> pytest.TestReport:
    return pytest.TestReport(
        item.nodeid, item.location, dict.fromkeys(item.keywords, 1), outcome, why, "call"
    )


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    """The simulated device, new for every test, which may break no rule and leave nothing."""
    from tests.simulator.simulated_cuda import device

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if device.report().leaks:  # of a test that failed
        gc.collect()
    device.reset()
    if environment := sys.modules.get("tensorrt_rtx._environment"):
        environment.reset()
    yield device
    device.release()
    if device.report().leaks:
        gc.collect()
    report = device.report()
    assert report.violations == []
    assert report.failed or report.leaks == []


@pytest.fixture
def card(device: Device) -> Iterator[Card]:
    """The device in use: a context, a stream, and what tests ask of it."""
    from tests.simulator.card import Card

    card = Card()
    yield card
    card.close()


@pytest.fixture(scope="session")
def plan_bundle(request: pytest.FixtureRequest) -> Path:
    """The small bundle with plans of ``fp32`` for SM120, built by the real TensorRT-RTX.

    Do not write into it.
    """

    def make(folder: Path) -> None:  # which imports torch, so only if there is none yet
        _build(request.getfixturevalue("small_bundle"), folder)

    return kept(request.config, f"plan-bundle-{_plan_key()}", make)


def _plan_key() -> str:
    """Changes with what builds plans, beside what exports graphs."""
    maker = freshness.maker("engines", ("tensorrt_rtx_cu13",))
    return hashlib.sha256(maker.encode()).hexdigest()[:8]


def _build(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    build = ["-m", "sana_rt", "build", str(folder), "--variant", "fp32", "--target", "sm120"]
    subprocess.run([sys.executable, *build], check=True, env=real_environment())


@pytest.fixture
def plans(plan_bundle: Path) -> Path:
    """A bundle whose plans the stand-in of TensorRT-RTX can play."""
    from tensorrt_rtx import _environment

    _environment.bundles.append(plan_bundle)
    return plan_bundle
