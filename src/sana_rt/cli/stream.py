"""``sana-rt stream``: play a long clip, watch it grow, stop it, continue it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sana_rt.cli.playing import FILE, Reporter, given_options, request_options
from sana_rt.errors import StateError, UsageError

if TYPE_CHECKING:
    from sana_rt.runtime.pipeline import Progress, ProgressCallback
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.scenes import Script
    from sana_rt.runtime.session import Session
    from sana_rt.runtime.snapshot import Snapshot
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
@click.option("--save-state", type=FILE, help="Write what continues the stream, also on Ctrl-C.")
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

    One Ctrl-C stops when the pass at hand is done, so that the state can be saved; two stop at
    once.
    """
    _check_output(output, resume)
    from sana_rt.runtime import inputs
    from sana_rt.runtime.session import Session
    from sana_rt.runtime.snapshot import Snapshot

    options["prompt"], script = _script(options["prompt"], prompts_at, recommit=recommit)
    prompted = prompt_embeds is not None or resume is not None
    given = given_options(config, options, prompted=prompted)
    session = Session.open(bundle, variant=variant, backend=backend, threads=threads)
    if save_state is not None and not session.model.transformer.causal:
        raise UsageError(
            f"{session.model.name!r} makes a clip in one piece, so there is no state to save.",
            expected="a block-causal model (LongSANA) with --save-state.",
        )
    state = Snapshot.load(resume) if resume else None
    request = _request(session, state, given, seconds)
    guided = request.guided
    embeds = inputs.read_prompt_embeds(prompt_embeds, guided=guided) if prompt_embeds else None
    brought = inputs.Inputs(prompt_embeds=embeds)
    if dry_run:
        click.echo(session.plan(request, brought).table())
        return
    reporter = Reporter()
    with reporter.shown(), _patient(reporter) as progress:
        stream = session.stream(
            request,
            brought,
            script=script,
            resume=state,
            progress=progress,
            check_finite=check_finite,
        )
        _tell_prompts(stream, request, session, reporter)
        try:
            _write(stream, output, request)
        except KeyboardInterrupt:
            _save(stream, save_state, reporter)
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


def _script(
    prompt: str | None, prompts_at: tuple[tuple[float, str], ...], *, recommit: bool
) -> tuple[str | None, Script]:
    """The prompt to begin with, and those that follow."""
    from sana_rt.runtime.scenes import Scene, Script

    first = [text for seconds, text in prompts_at if seconds == 0]
    if len(first) + (prompt is not None) > 1:
        raise UsageError(
            "There are two prompts to begin with.", expected="PROMPT or --prompt-at 0."
        )
    if negative := [seconds for seconds, _ in prompts_at if not seconds >= 0]:
        raise UsageError(f"A prompt begins at {negative[0]:g} s.", expected="0 or later.")
    later = tuple(Scene(seconds, text) for seconds, text in prompts_at if seconds)
    return (first[0] if first else prompt), Script(later, recommit)


def _request(
    session: Session, state: Snapshot | None, given: dict[str, Any], seconds: float | None
) -> Request:
    from sana_rt import geometry

    request = session.request(resume=state, **given)
    if seconds is None:
        return request
    num_frames = geometry.num_frames(seconds, request.fps, session.model)
    return session.request(resume=state, **given | {"num_frames": num_frames})


@contextlib.contextmanager
def _patient(report: ProgressCallback) -> Iterator[ProgressCallback]:
    """Let an interrupt wait for the next progress; a second one does not wait."""
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, before)

    def report_and_stop(progress: Progress) -> None:
        report(progress)
        if interrupted:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield report_and_stop
    finally:
        signal.signal(signal.SIGINT, before)


def _tell_prompts(stream: Stream, request: Request, session: Session, reporter: Reporter) -> None:
    """Say where prompts begin: at chunks, not at the seconds asked for."""
    for shot in stream.shots[1:]:
        seconds = shot.seconds(request.fps, session.model)
        line = f"From {seconds:.4g} s, where a chunk begins: {shot.prompt}"
        reporter.console.print(line, markup=False, highlight=False)


def _write(stream: Stream, output: Path, request: Request) -> None:
    from sana_rt.runtime.video import live_video

    size = {"height": request.height, "width": request.width}
    with live_video(output, **size, fps=request.fps) as write:
        for frames in stream:
            write(frames)


def _save(stream: Stream, path: Path | None, reporter: Reporter) -> None:
    if path is None:
        return
    try:
        stream.state().save(path)
    except StateError as error:
        reporter.console.print(f"{path} is not written. {error.happened}")
    else:
        reporter.console.print(f"Continue with --resume {path}")
