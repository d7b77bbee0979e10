"""``sana-rt stream``: play a long clip, watch it grow, stop it, continue it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sana_rt.cli.playing import FILE, Reporter, given_options, request_options
from sana_rt.errors import SanaRTError, UsageError
from sana_rt.interrupts import deferred

if TYPE_CHECKING:
    from sana_rt.runtime.pipeline import Progress
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.session import Session
    from sana_rt.runtime.stream import Stream


@click.command(
    epilog='Example: sana-rt stream out/bundle "a red circle" --seconds 60 -o minute.mp4'
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=FILE, required=True, help="The mp4 to write, as it is made.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Length, from the beginning of the stream.  [default: the model's, or as before]",
)
@click.option(
    "--prompt-at",
    "prompts_at",
    type=(float, str),
    multiple=True,
    metavar="SECONDS PROMPT",
    help="Change to another prompt, at the nearest chunk. Repeat it for more.",
)
@click.option("--recommit", is_flag=True, help="Remember the last chunk under the new prompt.")
@click.option("--save-state", type=FILE, help="Write what continues the stream, whenever it stops.")
@click.option("--resume", type=FILE, help="Continue from what --save-state wrote.")
@request_options
def command(
    bundle: Path,
    *,
    output: Path,
    seconds: float | None,
    prompts_at: tuple[tuple[float, str], ...],
    recommit: bool,
    save_state: Path | None,
    resume: Path | None,
    prompt_embeds: Path | None,
    config: Path | None,
    variant: str | None,
    backend: str,
    threads: int | None,
    check_finite: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Play BUNDLE as a stream: chunk after chunk, at constant memory.

    The video can be played while it grows, and is whole whenever the command ends. With
    --resume the options are those of the stream before, and the video is its continuation only.

    One Ctrl-C (or SIGTERM) stops when the pass at hand is done; two stop at once. The state is
    saved however the stream stops, by an error or a full disk, too.
    """
    _check_output(output, resume)
    from sana_rt.runtime.inputs import brought
    from sana_rt.runtime.prompt_schedule import scheduled
    from sana_rt.runtime.session import Session
    from sana_rt.runtime.state import State

    options["prompt"], schedule = scheduled(options["prompt"], prompts_at, recommit=recommit)
    prompted = prompt_embeds is not None or resume is not None
    given = given_options(config, options, prompted=prompted)
    session = Session.open(bundle, variant=variant, backend=backend, threads=threads)
    if save_state is not None and not session.model.transformer.causal:
        raise UsageError(
            f"{session.model.name!r} makes a clip in one piece, so there is no state to save.",
            expected="a block-causal model (LongSANA) with --save-state.",
        )
    state = State.load(resume) if resume else None
    if seconds is not None:
        given.pop("num_frames", None)  # of the configuration file
    request = session.request(resume=state, seconds=seconds, **given)
    inputs = brought(request, prompt_embeds=prompt_embeds)
    if dry_run:
        click.echo(session.plan(request, inputs).table())
        return
    reporter = Reporter()
    with reporter.shown(), deferred() as held:

        def report(progress: Progress) -> None:
            reporter(progress)
            held.check()

        stream = session.stream(
            request,
            inputs,
            schedule=schedule,
            resume=state,
            progress=report,
            check_finite=check_finite,
        )
        _tell_prompts(stream, request, session, reporter)
        try:
            _write(stream, output, request)
        except (KeyboardInterrupt, SanaRTError):
            try:
                _save(stream, save_state, reporter)
            except SanaRTError as error:  # told only; what stopped the stream is raised
                reporter.console.print(f"{save_state} is not written. {error.happened}")
            raise
        _save(stream, save_state, reporter)
    reporter.console.print(reporter.summary(session.backend))
    click.echo(output)


def _check_output(output: Path, resume: Path | None) -> None:
    if output.suffix != ".mp4":
        raise UsageError(f"{output} does not end in .mp4.", expected="a .mp4 file.")
    if resume is not None and output.exists():
        raise UsageError(
            f"{output} is there already, and a continuation would take its place.",
            expected="another name than that of the part before.",
        )


def _tell_prompts(stream: Stream, request: Request, session: Session, reporter: Reporter) -> None:
    """Say where prompts begin: at chunks, not at the seconds asked for."""
    for shot in stream.prompts[1:]:
        seconds = shot.seconds(request.fps, session.model)
        line = f"From {seconds:.4g} s, where a chunk begins: {shot.prompt}"
        reporter.console.print(line, markup=False, highlight=False)


def _write(stream: Stream, output: Path, request: Request) -> None:
    from sana_rt.runtime.frames import live_video

    size = {"height": request.height, "width": request.width}
    with live_video(output, **size, fps=request.fps) as write:
        for frames in stream:
            write(frames)


def _save(stream: Stream, path: Path | None, reporter: Reporter) -> None:
    if path is not None:
        stream.state().save(path)
        reporter.console.print(f"Continue with --resume {path}")
