"""``sana-rt stream``: play a long clip, watch it grow, stop it, continue it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sana_rt.cli import output as show
from sana_rt.cli import paths
from sana_rt.cli.clip_output import ClipOutput, hashes, output_options
from sana_rt.cli.command import Command
from sana_rt.cli.playing import FILE, Reporter, given_options, notes, request_options, show_plan
from sana_rt.cli.wanted_size import Wanted
from sana_rt.errors import SanaRTError, UsageError
from sana_rt.geometry import video_frames
from sana_rt.interrupts import deferred

if TYPE_CHECKING:
    from sana_rt.runtime.images import Fit
    from sana_rt.runtime.pipeline import Progress
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.session import Session
    from sana_rt.runtime.state import State
    from sana_rt.runtime.stream import Stream


@click.command(
    cls=Command,
    epilog='Example: sana-rt stream out/bundle "a red circle" --seconds 60 -o minute.mp4',
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@output_options
@click.option(
    "--prompt-at",
    "prompts_at",
    type=(float, str),
    multiple=True,
    metavar="SECONDS PROMPT",
    help="Switch to PROMPT at this time, rounded to the nearest chunk. Repeat it to make a prompt "
    "schedule.",
)
@click.option(
    "--recommit",
    is_flag=True,
    help="At each prompt switch, compute the state of the last chunk again with the new prompt.",
)
@click.option(
    "--save-state",
    type=FILE,
    help="Write the state to this file when the stream stops, for --resume.",
)
@click.option(
    "--resume", type=FILE, help="Resume the stream from this file, which --save-state wrote."
)
@request_options
def command(
    bundle: Path,
    *,
    output: Path | None,
    contact_sheet: Path | None,
    no_metadata: bool,
    overwrite: bool,
    as_json: bool,
    prompts_at: tuple[tuple[float, str], ...],
    recommit: bool,
    save_state: Path | None,
    resume: Path | None,
    aspect: str | None,
    size: str | None,
    seconds: float | None,
    image: Path | None,
    fit: Fit,
    noise: Path | None,
    prompt_embeds: Path | None,
    config: Path | None,
    variant: str | None,
    backend: str,
    max_memory: str | None,
    threads: int | None,
    cuda_graph: bool,
    timeout: float,
    check_finite: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Generate a long video of PROMPT with the model in BUNDLE, chunk by chunk, at constant memory.

    The video can be watched while it grows, and is complete whenever the command ends. With
    --resume, options that are left out are those of the resumed stream, and the video holds only
    the continuation.

    One Ctrl-C (or SIGTERM) stops after the current pass; two stop at once. The state is saved
    however the stream stops, even on an error or a full disk.
    """
    target = ClipOutput(output, contact_sheet, not no_metadata, overwrite)
    files = {"--image": image, "--noise": noise, "--prompt-embeds": prompt_embeds}
    target.check(files | {"--config": config, "--resume": resume})
    _check_state(save_state, resume, files | target.named, overwrite=overwrite)
    from sana_rt.runtime import clip_record
    from sana_rt.runtime.inputs import brought
    from sana_rt.runtime.prompt_schedule import scheduled
    from sana_rt.runtime.session import Session
    from sana_rt.runtime.state import State

    options["prompt"], schedule = scheduled(options["prompt"], prompts_at, recommit=recommit)
    given = given_options(config, options, prompt_embeds=prompt_embeds, resume=resume)
    session = Session.open(
        bundle,
        variant=variant,
        backend=backend,
        threads=threads,
        cuda_graph=cuda_graph,
        timeout=timeout,
        max_memory=max_memory,
    )
    if save_state is not None and not session.model.transformer.causal:
        raise UsageError(
            f"{session.model.name!r} generates a clip in one piece, so there is no state to save.",
            expected="a block-causal model (LongSANA) with --save-state.",
        )
    state = State.load(resume) if resume else None
    wanted, conditioned = Wanted(aspect, size, seconds), image is not None
    request = wanted.request(session, given, options, resume=state, conditioned=conditioned)
    with notes():
        inputs = brought(request, image=image, fit=fit, noise=noise, prompt_embeds=prompt_embeds)
    if dry_run:
        show_plan(session, session.plan(request, inputs), as_json=as_json)
        return
    if output is None and contact_sheet is None:
        target = target.called(request)
    record = clip_record.of(
        session,
        "stream",
        request,
        inputs=hashes(files | {"--resume": resume}),
        fit=fit,
        schedule=schedule,
    )
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
        frames = _left(request, state, session)
        try:
            with target.writing(request, record, reporter, frames=frames, live=True) as write:
                for made in stream:
                    write(made)
        except (KeyboardInterrupt, SanaRTError):
            try:
                _save(stream, save_state, reporter)
            except SanaRTError as error:  # told only; what stopped the stream is raised
                reporter.console.print(f"{save_state} was not written. {error.happened}")
            raise
        _save(stream, save_state, reporter)
    reporter.console.print(reporter.summary(session.backend))
    if as_json:
        saved = {"state": None if save_state is None else str(save_state)}
        show.json(target.facts(request, session, reporter) | saved)
    else:
        click.echo(target.path or contact_sheet)


def _check_state(
    save_state: Path | None, resume: Path | None, others: paths.Named, *, overwrite: bool
) -> None:
    """A state may go where the one lies that is resumed, and nowhere else over a file."""
    renewed = save_state is not None and resume is not None and save_state == resume
    paths.check({"--save-state": save_state}, others, overwrite=overwrite or renewed)


def _left(request: Request, state: State | None, session: Session) -> int:
    """The frames that are still to be made."""
    decoded = 0 if state is None else state.header.position.decoded
    return request.num_frames - (video_frames(session.model, decoded) if decoded else 0)


def _tell_prompts(stream: Stream, request: Request, session: Session, reporter: Reporter) -> None:
    """Say where prompts begin: at chunks, not at the seconds asked for."""
    for shot in stream.prompts[1:]:
        seconds = shot.seconds(request.fps, session.model)
        line = f"From {seconds:.4g} s, where a chunk begins: {shot.prompt}"
        reporter.console.print(line, markup=False, highlight=False)


def _save(stream: Stream, path: Path | None, reporter: Reporter) -> None:
    if path is not None:
        stream.state().save(path)
        reporter.console.print(f"Continue with --resume {path}")
