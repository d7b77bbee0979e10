"""``sana-rt generate``: play a bundle, prompt in, video out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sana_rt.cli import paths
from sana_rt.cli.playing import FILE, Reporter, given_options, request_options, show_plan
from sana_rt.errors import UsageError

if TYPE_CHECKING:
    from sana_rt.runtime.denoiser import Latents
    from sana_rt.runtime.images import Fit
    from sana_rt.runtime.inputs import Inputs
    from sana_rt.runtime.pipeline import Chunk
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.session import Session


@click.command(
    epilog='Example: sana-rt generate out/bundle "a red circle moving to the right" -o circle.mp4'
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=FILE, help="Video file to write, .mp4.")
@click.option(
    "--save-latents", type=FILE, help="Write the latents [1, C, T, h, w] to this .npy file."
)
@click.option(
    "--num-frames",
    type=int,
    help="Length of the video in frames: 4k + 1, or 8k + 1 if the autoencoder compresses time by "
    "8.  [default: the model's]",
)
@click.option("--image", type=FILE, help="Image to use as the first frame (image-to-video).")
@click.option(
    "--fit",
    type=click.Choice(["crop", "stretch"]),
    default="crop",
    show_default=True,
    help="How to fit an --image of another aspect ratio: crop it around its centre, or stretch "
    "it as diffusers does.",
)
@click.option(
    "--noise",
    type=FILE,
    help="Initial noise, a .npy file of float32 [1, C, T, h, w].  [default: made from --seed]",
)
@request_options
def command(
    bundle: Path,
    *,
    output: Path | None,
    save_latents: Path | None,
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

    If BUNDLE has no autoencoder, or to decode elsewhere, give --save-latents without --output.
    """
    _check_files(output, save_latents)
    read = {"--image": image, "--noise": noise, "--prompt-embeds": prompt_embeds}
    paths.check({"--output": output, "--save-latents": save_latents}, read | {"--config": config})
    from sana_rt.runtime.inputs import brought
    from sana_rt.runtime.session import Session

    given = given_options(config, options, prompted=prompt_embeds is not None)
    session = Session.open(
        bundle,
        variant=variant,
        backend=backend,
        threads=threads,
        cuda_graph=cuda_graph,
        timeout=timeout,
        max_memory=max_memory,
    )
    request = session.request(conditioned=image is not None, **given)
    inputs = brought(request, image=image, fit=fit, noise=noise, prompt_embeds=prompt_embeds)
    if dry_run:
        show_plan(session, session.plan(request, inputs, decode=output is not None))
        return
    reporter = Reporter()
    with reporter.shown():
        latents = _play(session, request, inputs, output, reporter, check_finite=check_finite)
        if save_latents is not None:
            _save(save_latents, latents)
    reporter.console.print(reporter.summary(session.backend))
    click.echo(output or save_latents)


def _check_files(output: Path | None, save_latents: Path | None) -> None:
    if output is None and save_latents is None:
        raise UsageError(
            "Nothing would be written.",
            expected="-o video.mp4, --save-latents latents.npy, or both.",
        )
    for path, suffix in ((output, ".mp4"), (save_latents, ".npy")):
        if path is not None and path.suffix != suffix:
            raise UsageError(f"{path} does not end in {suffix}.", expected=f"a {suffix} file.")


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
    from sana_rt.runtime.video import video

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
