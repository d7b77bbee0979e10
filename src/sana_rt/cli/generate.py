"""``sana-rt generate``: play a bundle, prompt in, video out."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sana_rt.cli import output as show
from sana_rt.cli import paths
from sana_rt.cli.clip_output import ClipOutput, hashes, output_options
from sana_rt.cli.command import Command
from sana_rt.cli.playing import FILE, Reporter, given_options, notes, request_options, show_plan
from sana_rt.cli.wanted_size import Wanted

if TYPE_CHECKING:
    from sana_rt.runtime.autoencoder import Frames
    from sana_rt.runtime.denoiser import Latents
    from sana_rt.runtime.images import Fit
    from sana_rt.runtime.inputs import Inputs
    from sana_rt.runtime.pipeline import Chunk
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.session import Session


@click.command(
    cls=Command,
    epilog='Example: sana-rt generate out/bundle "a red circle moving to the right" -o circle.mp4',
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@output_options
@click.option(
    "--save-latents", type=FILE, help="Write the latents [1, C, T, h, w] to this .npy file."
)
@click.option(
    "--prompts",
    type=FILE,
    help="Generate a video for every line of this file, a prompt or a JSON object with prompt, "
    "seed, aspect, seconds, ..., into the folder --output; what is there already is not made "
    "again.  [default folder: the name of the file]",
)
@request_options
def command(
    bundle: Path,
    *,
    output: Path | None,
    contact_sheet: Path | None,
    save_latents: Path | None,
    prompts: Path | None,
    no_metadata: bool,
    overwrite: bool,
    as_json: bool,
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
    """Generate a video of PROMPT with the model in BUNDLE.

    Options that are left out are taken from --config, then from the model's defaults. The last
    line on stdout is the path of the file that was written; progress goes to stderr.

    With --save-latents or --contact-sheet, a video is written only if --output is given. Save
    the latents if BUNDLE has no autoencoder, or to decode elsewhere.

    With --prompts, --output is a folder, and results.jsonl in it says what became of each line.
    The same command goes on where it was stopped, and tries again what failed; it exits with 1
    if something did.
    """
    from sana_rt.runtime.session import Session

    opened = partial(
        Session.open,
        bundle,
        variant=variant,
        backend=backend,
        threads=threads,
        cuda_graph=cuda_graph,
        timeout=timeout,
        max_memory=max_memory,
    )
    wanted = Wanted(aspect, size, seconds)
    if prompts is not None:
        from sana_rt.cli import clip_list

        clip_list.refuse(
            {
                "PROMPT": options["prompt"],
                "--save-latents": save_latents,
                "--contact-sheet": contact_sheet,
                "--noise": noise,
                "--prompt-embeds": prompt_embeds,
            }
        )
        clip_list.generate(
            clip_list.ListOptions(
                prompts=prompts,
                folder=output or Path(prompts.stem),
                given=given_options(config, options, prompts=prompts),
                line=options,
                wanted=wanted,
                image=image,
                fit=fit,
                metadata=not no_metadata,
                overwrite=overwrite,
                check_finite=check_finite,
            ),
            opened,
            dry_run=dry_run,
            as_json=as_json,
        )
        return
    target = ClipOutput(output, contact_sheet, not no_metadata, overwrite)
    files = {"--image": image, "--noise": noise, "--prompt-embeds": prompt_embeds}
    target.check(files | {"--config": config})
    paths.check_suffix("--save-latents", save_latents, ".npy")
    latents_file = {"--save-latents": save_latents}
    paths.check(latents_file, files | target.named, overwrite=overwrite)
    from sana_rt.runtime import clip_record
    from sana_rt.runtime.inputs import brought

    given = given_options(config, options, prompt_embeds=prompt_embeds)
    session = opened()
    request = wanted.request(session, given, options, conditioned=image is not None)
    with notes():
        inputs = brought(request, image=image, fit=fit, noise=noise, prompt_embeds=prompt_embeds)
    if output is None and save_latents is None and contact_sheet is None:
        target = target.called(request)
    decode = target.path is not None or contact_sheet is not None
    if dry_run:
        show_plan(session, session.plan(request, inputs, decode=decode), as_json=as_json)
        return
    record = clip_record.of(session, "generate", request, inputs=hashes(files), fit=fit)
    reporter = Reporter()
    with reporter.shown():
        latents: list[Latents] = []
        job = _Job(session, request, inputs, latents, reporter, check_finite)
        if decode:
            with target.writing(request, record, reporter, frames=request.num_frames) as write:
                job.play(write)
        else:
            job.denoise()
        if save_latents is not None:
            _save(save_latents, latents)
            reporter.lap("write")
    reporter.console.print(reporter.summary(session.backend))
    if as_json:
        saved = {"latents": None if save_latents is None else str(save_latents)}
        show.json(target.facts(request, session, reporter) | saved)
    else:
        click.echo(target.path or contact_sheet or save_latents)


@dataclass(frozen=True)
class _Job:
    """A clip to make; ``latents`` takes those of each chunk."""

    session: Session
    request: Request
    inputs: Inputs
    latents: list[Latents]
    reporter: Reporter
    check_finite: bool

    def play(self, write: Callable[[Frames], None]) -> None:
        """Make the clip, frame by frame."""
        for frames in self.session.generate(
            self.request,
            self.inputs,
            progress=self.reporter,
            on_chunk=self._keep,
            check_finite=self.check_finite,
        ):
            write(frames)

    def denoise(self) -> None:
        """Make the latents alone."""
        for chunk in self.session.latents(
            self.request, self.inputs, progress=self.reporter, check_finite=self.check_finite
        ):
            self._keep(chunk)

    def _keep(self, chunk: Chunk) -> None:
        self.latents.append(chunk.latents)


def _save(path: Path, latents: list[Latents]) -> None:
    import numpy as np

    from sana_rt.files import writing

    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(latents, axis=2))
    with writing(path) as file:
        file.write(buffer.getbuffer())
