"""``sana-rt generate``: play a bundle, prompt in, video out."""

from __future__ import annotations

import contextlib
import io
import itertools
import resource
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import click
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sana_rt.cli import output as show
from sana_rt.errors import UsageError
from sana_rt.model_spec import SolverName

if TYPE_CHECKING:
    from sana_rt.runtime.denoiser import Latents
    from sana_rt.runtime.inputs import Inputs
    from sana_rt.runtime.pipeline import Chunk, Progress
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.session import Session

_STAGES: Final = {
    "encode": "Reading the prompt",
    "load": "Loading graphs",
    "denoise": "Denoising",
    "decode": "Decoding frames",
}
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    epilog='Example: sana-rt generate out/bundle "a red circle moving to the right" -o circle.mp4'
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=_FILE, help="The mp4 to write.")
@click.option("--save-latents", type=_FILE, help="Write the latents [1, C, T, h, w] as .npy, too.")
@click.option("--negative-prompt", help="What the video shall not show.")
@click.option("--height", type=int, help="Pixels, a multiple of what the model asks for.")
@click.option("--width", type=int, help="Pixels, likewise.")
@click.option("--num-frames", type=int, help="Frames of the video, 4k + 1 or 8k + 1.")
@click.option("--fps", type=int, help="Frames a second.")
@click.option("--num-inference-steps", type=int, help="Denoising steps: more is slower and better.")
@click.option("--guidance-scale", type=float, help="How strictly to follow the prompt; 1 is off.")
@click.option("--solver", type=click.Choice(get_args(SolverName)), help="How steps are taken.")
@click.option("--flow-shift", type=float, help="Moves the schedule towards noise.")
@click.option("--motion-score", type=int, help="How much shall move; 0 is little.")
@click.option("--no-motion-score", is_flag=True, help="Say nothing about motion in the prompt.")
@click.option("--seed", type=int, help="Of the noise; the same seed gives the same video.")
@click.option("--lowercase", is_flag=True, default=None, help="Lower-case prompts, as diffusers.")
@click.option("--image", type=_FILE, help="A picture to begin with (image-to-video).")
@click.option("--noise", type=_FILE, help="The noise to begin with, .npy, f32 [1, C, T, h, w].")
@click.option("--prompt-embeds", type=_FILE, help="Embeddings instead of a prompt, .npz.")
@click.option("--config", type=_FILE, help="TOML with any of these options; flags come first.")
@click.option("--variant", help="Which numerical version of the bundle to play.")
@click.option("--backend", default="auto", show_default=True, help="What to play it on.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option("--check-finite", is_flag=True, help="Stop at the first NaN and name its graph.")
@click.option("--dry-run", is_flag=True, help="Check everything, show the memory needed, stop.")
def command(
    bundle: Path,
    *,
    output: Path | None,
    save_latents: Path | None,
    image: Path | None,
    noise: Path | None,
    prompt_embeds: Path | None,
    config: Path | None,
    variant: str | None,
    backend: str,
    threads: int | None,
    check_finite: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Play BUNDLE: turn PROMPT into a video.

    What is left out is taken from --config, then from the model's own defaults. The last line
    on stdout is the path of the file that was written; progress goes to stderr.

    Without an autoencoder in the bundle, or to decode elsewhere, give --save-latents alone.
    """
    _check_files(output, save_latents)
    from sana_rt.runtime.session import Session

    given = _given(config, options, embeds=prompt_embeds is not None)
    session = Session.open(bundle, variant=variant, backend=backend, threads=threads)
    request = session.request(conditioned=image is not None, **given)
    inputs = _inputs(request, image, noise, prompt_embeds)
    if dry_run:
        click.echo(session.plan(request, inputs, decode=output is not None).table())
        return
    reporter = Reporter()
    with reporter.shown():
        latents = _play(session, request, inputs, output, reporter, check_finite=check_finite)
        if save_latents is not None:
            _save(save_latents, latents)
    reporter.console.print(reporter.summary(session.backend))
    click.echo(output or save_latents)


class Reporter:
    """Shows progress and warnings on stderr, and remembers when passes ended."""

    def __init__(self) -> None:
        self.console = show.stderr()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Bar(*columns, TimeRemainingColumn(), console=self.console)
        self._tasks: dict[str, TaskID] = {}
        self._started = time.monotonic()
        self._passes: list[float] = []

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bars, and warnings above them."""
        with self._bar, warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_, **__: self.console.print(f"Note: {message}")
            yield

    def __call__(self, progress: Progress) -> None:
        """Move the bar of the stage."""
        if progress.stage not in self._tasks:
            description = _STAGES[progress.stage]
            self._tasks[progress.stage] = self._bar.add_task(description, total=progress.total)
        self._bar.update(self._tasks[progress.stage], completed=progress.done)
        if progress.stage == "denoise":
            self._passes.append(time.monotonic())

    def summary(self, backend: str) -> str:
        """What it cost."""
        seconds = [end - start for start, end in itertools.pairwise(self._passes)]
        pace = f"{sum(seconds) / len(seconds):.3g} s a step, " if seconds else ""
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux: KiB
        return (
            f"{backend}: {pace}{time.monotonic() - self._started:.3g} s in all, "
            f"at most {show.size(resident)} of memory in the process"
        )


def _check_files(output: Path | None, save_latents: Path | None) -> None:
    if output is None and save_latents is None:
        raise UsageError(
            "Nothing would be written.",
            expected="-o video.mp4, --save-latents latents.npy or both.",
        )
    for path, suffix in ((output, ".mp4"), (save_latents, ".npy")):
        if path is not None and path.suffix != suffix:
            raise UsageError(f"{path} does not end in {suffix}.", expected=f"a {suffix} file.")


def _given(config: Path | None, options: dict[str, Any], *, embeds: bool) -> dict[str, Any]:
    """The options that were given: those of the configuration file, under those of the line."""
    from sana_rt.runtime import request as requests

    silent = options.pop("no_motion_score")
    given = requests.read_options(config) if config else {}
    given |= {name: value for name, value in options.items() if value is not None}
    if silent:
        given["motion_score"] = None
    if "prompt" not in given and not embeds:
        raise UsageError(
            "There is no prompt.", expected="PROMPT, --prompt-embeds, or a prompt in --config."
        )
    return given


def _inputs(
    request: Request, image: Path | None, noise: Path | None, prompt_embeds: Path | None
) -> Inputs:
    from sana_rt.runtime import frames, inputs

    guided = request.batch == 2
    return inputs.Inputs(
        noise=inputs.read_noise(noise) if noise else None,
        prompt_embeds=(
            inputs.read_prompt_embeds(prompt_embeds, guided=guided) if prompt_embeds else None
        ),
        image=frames.read_image(image, request.height, request.width) if image else None,
    )


def _play(
    session: Session,
    request: Request,
    inputs: Inputs,
    output: Path | None,
    reporter: Reporter,
    *,
    check_finite: bool,
) -> list[Latents]:
    """Make the clip, write the video if wanted, and return the latents of each chunk."""
    from sana_rt.runtime.frames import video

    latents: list[Latents] = []

    def keep(chunk: Chunk) -> None:
        latents.append(chunk.latents)

    if output is None:
        for chunk in session.latents(request, inputs, progress=reporter, check_finite=check_finite):
            keep(chunk)
        return latents
    clip = session.generate(
        request, inputs, progress=reporter, on_chunk=keep, check_finite=check_finite
    )
    with video(output, height=request.height, width=request.width, fps=request.fps) as write:
        for frames in clip:
            write(frames)
    return latents


def _save(path: Path, latents: list[Latents]) -> None:
    import numpy as np

    from sana_rt.files import writing

    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(latents, axis=2))
    with writing(path) as file:
        file.write(buffer.getbuffer())
