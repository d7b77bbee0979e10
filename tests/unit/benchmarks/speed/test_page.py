"""The page needs nothing beside it, says what was measured, and what is a bound only."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest

from sana_rt.benchmarks.speed import page
from sana_rt.benchmarks.speed.bench import Benchmark
from sana_rt.benchmarks.speed.bounds import BoundCard, GraphShare
from sana_rt.benchmarks.speed.kernels import KernelShare, KernelShares
from sana_rt.benchmarks.speed.report import Report, SideReport
from sana_rt.benchmarks.speed.turn import GraphTime, KernelTime, TurnCard

replace = msgspec.structs.replace
FRAMES = np.random.default_rng(0).integers(0, 256, (17, 40, 648, 3), np.uint8)


class Text(HTMLParser):
    """What a reader sees, and what a browser would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.feed(re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))
        self.text = " ".join(" ".join(self.words).split())

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, _tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attributes if name in {"src", "href"}]


def shown(report: Report) -> str:
    return Text(page.render(Benchmark(report, {}))).text


def test_it_needs_nothing_beside_it(report: Report) -> None:
    html = page.render(Benchmark(report, {"fp32": FRAMES, "nvfp4-max": FRAMES}))
    sources = Text(html).sources
    assert len(sources) == 2 * 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|<script|<link|https?://", html)
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_what_strangers_wrote_is_text(report: Report) -> None:
    html = page.render(Benchmark(replace(report, command="<script>"), {}))
    assert "a &lt;b&gt;" in html
    assert "<script>" not in html


def test_it_says_how_each_side_compares(report: Report) -> None:
    text = shown(report)
    assert "nvfp4-max 1.7 s 2.00× as fast (0.50 to 0.50 of the baseline's)" in text
    assert "diffusers-eager 6.8 s 2.00× the time" in text
    assert "Not measured diffusers-compiled It took longer than its limit of 5 s." in text
    assert "17 frames of 64×64, 8 steps of dpmpp_2m, guidance 6, 2 prompts in each of 3" in text


def test_a_bound_of_a_card_that_is_not_there_is_called_not_measured(report: Report) -> None:
    text = shown(report)
    assert "bounds of the plans" not in text
    assert "a bound of the plans for GeForce RTX 5090, not measured" in text
    assert "2 blocks 80.0 % 16 500 ms 300 ms solver 20.0 % 8 250 ms –" in text
    assert "reached" not in text


def test_on_the_card_itself_the_part_that_was_reached_is_told(report: Report) -> None:
    graphs = (GraphShare(GraphTime("block_00", 8, 4.0, 0.5), 1.0, 0.3, 0.6),)
    bound = BoundCard("GeForce RTX 5090", "sm120", measured=True)
    side = replace(report.sides[0], graphs=graphs, bound=bound)
    text = shown(replace(report, sides=(side,)))
    assert "1 blocks 100.0 % 8 500 ms 300 ms 60 %" in text
    assert "not measured" not in text


def test_a_busy_machine_and_a_quick_run_are_said_first(report: Report) -> None:
    assert "Quick run" not in shown(report)
    assert "was busy" not in shown(report)
    busy = replace(report, quick=True, conditions={**report.conditions, "load_average": 7.5})
    assert "no figures to quote. The machine was busy: 7.5 processes" in shown(busy)


def test_blocks_are_one_row(report: Report) -> None:
    rows = page.graph_rows(report.sides[0].graphs)
    assert [(row.name, row.share, row.runs) for row in rows] == [
        ("2 blocks", pytest.approx(0.8), 16),
        ("solver", 0.2, 8),
    ]
    assert rows[0].bound_seconds == pytest.approx(0.3), "the mean of the blocks'"
    assert rows[1].bound_seconds is None


def test_large_pictures_become_means_of_squares() -> None:
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    small = page._smaller(picture, 2)
    assert small.shape == (2, 3, 3)
    assert small[0, 0, 0] == round(float(picture[:2, :2, 0].mean()))
    assert page._smaller(picture, 1).tolist() == picture.tolist()


def kernel(name: str, seconds: float, bound: float | None, reached: float | None) -> KernelShare:
    return KernelShare(name, "gemm", "bfloat16", seconds, bound, reached)


def with_kernels(report: Report, *, measured: bool) -> SideReport:
    """Two blocks that run eight times each, half of whose time one kernel takes."""
    reached = 0.5 if measured else None
    blocks = (kernel("mul", 0.2, 0.1, reached), kernel("<wait>", 0.05, 0.0, None))
    one = KernelShares("block_00", 2, blocks, (KernelTime("other", 0.15),), ("mul2", "mul3"))
    kernels = (one, replace(one, graph="block_01", untimed=()))
    bound = BoundCard("GeForce RTX 5090", "sm120", measured)
    card = TurnCard("Simulated card", "12.0")
    return replace(report.sides[0], kernels=kernels, bound=bound, card=card)


def test_kernels_of_blocks_are_one_row_with_their_share(report: Report) -> None:
    mul, wait = page.kernel_rows(with_kernels(report, measured=True))
    assert (mul.graph, mul.name, mul.kind) == ("2 blocks", "mul", "gemm bfloat16")
    assert (mul.share, wait.share) == (pytest.approx(0.5), pytest.approx(0.125))
    assert (mul.seconds_each, mul.bound_seconds, mul.reached) == (0.2, pytest.approx(0.1), 0.5)
    assert wait.reached is None


def test_kernels_are_listed_with_what_was_reached_and_what_did_not_match(report: Report) -> None:
    text = shown(replace(report, sides=(with_kernels(report, measured=True),)))
    assert "mul 2 blocks gemm bfloat16 50.0 % 200 ms 100 ms 50 %" in text
    assert "<wait> 2 blocks gemm bfloat16 12.5 % 50 ms – –" in text
    assert "Of 6 names that TensorRT told times of, 4 have a row" in text
    assert "and 2 do not; of 2 rows of kernels that move or compute something" in text


def test_where_a_bound_was_not_measured_kernels_say_so_and_what_timed_them(report: Report) -> None:
    text = shown(replace(report, sides=(with_kernels(report, measured=False),)))
    assert "of 2 kernels, on Simulated card;" in text
    assert "reached" not in text
    assert "mul 2 blocks gemm bfloat16 50.0 % 200 ms 100 ms" in text
    assert "By kernel" not in shown(report)
