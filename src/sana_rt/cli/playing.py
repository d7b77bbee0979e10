"""What the commands that play a bundle share: options of a request, and progress."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import click
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sana_rt import machine
from sana_rt.cli import output as show
from sana_rt.cli.progress import Lines
from sana_rt.cli.stopwatch import Stopwatch
from sana_rt.errors import UsageError
from sana_rt.model_spec import SolverName

if TYPE_CHECKING:
    from sana_rt.runtime.memory import MemoryPlan
    from sana_rt.runtime.pipeline import Progress
    from sana_rt.runtime.session import Session

FILE: Final = click.Path(path_type=Path, dir_okay=False)
_STAGES: Final = {
    "encode": "Reading the prompt",
    "load": "Loading graphs",
    "denoise": "Denoising",
    "decode": "Decoding frames",
}


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them; click tells of a ValueError."""
    return tuple(float(part) for part in text.split(","))


_OPTIONS: Final = (
    click.option(
        "--negative-prompt",
        help="Negative prompt: what to keep out of the video; has no effect at guidance scale 1."
        "  [default: the model's]",
    ),
    click.option(
        "--aspect",
        metavar="W:H",
        help="Aspect ratio of the video, such as 16:9, 9:16 or 1:1: the nearest of the sizes that "
        "the model was trained at (`sana-rt inspect BUNDLE` lists them).",
    ),
    click.option(
        "--size",
        metavar="WxH",
        help="Width and height of the video in pixels, such as 1280x704; rounded to what the "
        "model can make.  [default: the model's]",
    ),
    click.option(
        "--height",
        type=int,
        help="Height of the video in pixels, a multiple of 16 or 32 for the released models.  "
        "[default: the model's]",
    ),
    click.option(
        "--width",
        type=int,
        help="Width of the video in pixels, a multiple of 16 or 32 for the released models.  "
        "[default: the model's]",
    ),
    click.option(
        "--num-frames",
        type=int,
        help="Length of the video in frames: 4k + 1, or 8k + 1 if the autoencoder compresses time "
        "by 8.  [default: the model's]",
    ),
    click.option(
        "--seconds",
        type=click.FloatRange(min=0, min_open=True),
        help="Length of the video in seconds, rounded up to whole latent frames; of a stream, "
        "counted from its beginning.  [default: the model's; with --resume, the stream's]",
    ),
    click.option("--fps", type=int, help="Frames per second, 1 to 240.  [default: the model's]"),
    click.option(
        "--num-inference-steps",
        type=int,
        help="Denoising steps, 1 to 1000; more steps are slower and usually better.  "
        "[default: the model's]",
    ),
    click.option(
        "--guidance-scale",
        type=float,
        help="Guidance scale, 0 to below 10000: how strictly to follow the prompt; 1 turns "
        "guidance off, which halves the work.  [default: the model's]",
    ),
    click.option(
        "--solver",
        type=click.Choice(get_args(SolverName)),
        help="Solver for the denoising steps; renoise is only for models distilled to few steps."
        "  [default: the model's]",
    ),
    click.option(
        "--flow-shift",
        type=float,
        help="Flow shift of the timesteps, above 0 and below 10000: higher values spend more "
        "steps at high noise.  [default: the model's]",
    ),
    click.option(
        "--timesteps",
        type=_numbers,
        metavar="T,T,...",
        help="Timesteps of the renoise solver, above 0 and up to 1000, in descending order."
        "  [default: the model's]",
    ),
    click.option(
        "--motion-score",
        type=int,
        help="How much motion to ask for in the prompt, an integer: higher is more; 0 or less "
        "asks for low motion.  [default: the model's]",
    ),
    click.option("--no-motion-score", is_flag=True, help="Add nothing about motion to the prompt."),
    click.option(
        "--seed",
        type=int,
        help="Seed of the noise, 0 to 2^64 - 1; the same seed gives the same video.  [default: 0]",
    ),
    click.option(
        "--lowercase",
        is_flag=True,
        default=None,
        help="Convert prompts to lower case, as diffusers does.",
    ),
    click.option("--image", type=FILE, help="Image to use as the first frame (image-to-video)."),
    click.option(
        "--fit",
        type=click.Choice(["crop", "stretch", "pad"]),
        default="crop",
        show_default=True,
        help="How to fit an --image of another aspect ratio: crop it around its centre, "
        "stretch it as diffusers does, or pad it with black.",
    ),
    click.option(
        "--noise",
        type=FILE,
        help="Initial noise, a .npy file of float32 [1, C, T, h, w].  [default: made from --seed]",
    ),
    click.option(
        "--prompt-embeds", type=FILE, help="Prompt embeddings to use instead of PROMPT, .npz."
    ),
    click.option(
        "--config",
        type=FILE,
        help="TOML file of the prompt and the options that describe the video, such as num_frames "
        "= 81; options on the command line override it.",
    ),
    click.option(
        "--variant",
        help="Variant of the bundle to use.  [default: one that is not quantized and runs here]",
    ),
    click.option(
        "--backend",
        default="auto",
        show_default=True,
        help="What to run the graphs with: tensorrt (plans of `sana-rt build`), onnxruntime-cuda, "
        "onnxruntime-rtx (NVIDIA's plug-in for ONNX Runtime), onnxruntime (CPU), or auto, the "
        "first of them that works.",
    ),
    click.option(
        "--max-memory",
        metavar="SIZE",
        help="Device memory to use at most, such as 8GB or 7.5GiB; what does not fit at the same "
        "time is loaded in turns, which is slower.  [default: what is free]",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]"),
    click.option(
        "--cuda-graph/--no-cuda-graph",
        default=True,
        show_default=True,
        help="Capture each step of plans as a CUDA graph, or launch its kernels one by one.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=600.0,
        show_default=True,
        help="Seconds that a GPU may take for a step before it is given up as stuck.",
    ),
    click.option(
        "--check-finite",
        is_flag=True,
        help="Stop at the first NaN or infinity and name the graph that wrote it.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Check the options and the memory needed, and show it by phase; generate nothing.",
    ),
)


def request_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what both commands know about a request and about how to play it."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def given_options(
    config: Path | None,
    options: dict[str, Any],
    *,
    prompt_embeds: Path | None = None,
    resume: Path | None = None,
    prompts: Path | None = None,
) -> dict[str, Any]:
    """The options that were given: those of the configuration file, under those of the line.

    Raises:
        UsageError: there is no prompt, and none comes from elsewhere; or there are two.
    """
    from sana_rt.runtime import request as requests

    if prompt_embeds is not None and options["prompt"] is not None:
        raise UsageError(
            "PROMPT and --prompt-embeds are both given.",
            expected="one of the two: the embeddings take the place of the prompt.",
        )
    prompted = any(each is not None for each in (prompt_embeds, resume, prompts))
    silent = options.pop("no_motion_score")
    given = requests.read_options(config) if config else {}
    given |= {name: value for name, value in options.items() if value is not None}
    if silent:
        given["motion_score"] = None
    if "prompt" not in given and not prompted:
        raise UsageError(
            "There is no prompt.", expected="PROMPT, --prompt-embeds, or a prompt in --config."
        )
    return given


def show_plan(session: Session, plan: MemoryPlan, *, as_json: bool) -> None:
    """What ``--dry-run`` shows; a plan that does not fit is refused."""
    session.check(plan)
    if as_json:
        show.json(plan.facts())
    else:
        click.echo(plan.table())


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Show warnings as notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: show.note(f"Note: {message}")
        yield


class Reporter:
    """Shows progress and warnings on stderr, and measures how long each stage takes."""

    def __init__(self, title: str = "") -> None:
        """``title`` begins every line about a clip that is one of several; its bars go again."""
        self.console, self._title = show.stderr(), title
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        remaining = TimeRemainingColumn()
        self._bar = Bar(*columns, remaining, console=self.console, transient=bool(title))
        self._lines = None if self.console.is_terminal else Lines(self.console)
        self._tasks: dict[str, TaskID] = {}
        self._watch = Stopwatch()
        self.lap = self._watch.lap
        self._passes = 0

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bars; above them warnings, and what the package logs."""
        bars = self._bar if self._lines is None else contextlib.nullcontext()
        with bars, warnings.catch_warnings(), _logged(self._note):
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_, **__: self._note(str(message))
            yield

    def _note(self, text: str) -> None:
        self.console.print(f"Note: {text}")

    def __call__(self, progress: Progress) -> None:
        """Move the bar of the stage, or print a line."""
        self.lap(progress.stage)
        self._show(progress)
        self._passes += progress.stage == "denoise"

    def _show(self, progress: Progress) -> None:
        if self._lines is not None:
            self._lines(self._title + _STAGES[progress.stage], progress.done, progress.total)
            return
        if progress.stage not in self._tasks:
            description = self._title + _STAGES[progress.stage]
            self._tasks[progress.stage] = self._bar.add_task(description, total=progress.total)
        self._bar.update(self._tasks[progress.stage], completed=progress.done)

    def seconds(self) -> dict[str, float]:
        """What each stage took, and everything."""
        return self._watch.report()

    def summary(self, backend: str) -> str:
        """What it cost."""
        pace = (
            f"{self._watch.of('denoise') / self._passes:.3g} s per step, " if self._passes else ""
        )
        peak = machine.peak_resident_bytes()
        memory = "" if peak is None else f", at most {show.size(peak)} of memory in the process"
        return f"{backend}: {pace}{self._watch.total:.3g} s in all{memory}"


@contextlib.contextmanager
def _logged(show: Callable[[str], None]) -> Iterator[None]:
    """Hand on what the package logs."""
    logger, handler = logging.getLogger("sana_rt"), logging.Handler()
    handler.emit = lambda record: show(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
