"""``sana-rt generate --prompts``: many clips into a folder, one after the other, resumable."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sana_rt.cli import output as show
from sana_rt.cli import paths, prompt_list
from sana_rt.cli.clip_output import ClipOutput, free_name, hashes, slug
from sana_rt.cli.list_results import NAME, Result, Results, settings
from sana_rt.cli.playing import Reporter, notes, show_plan
from sana_rt.cli.prompt_list import Line
from sana_rt.cli.wanted_size import Wanted
from sana_rt.errors import (
    DeviceLostError,
    RequestError,
    SanaRTError,
    StorageError,
    SystemMemoryError,
    UsageError,
    some,
)
from sana_rt.files import lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sana_rt.runtime.clip_record import ClipRecord
    from sana_rt.runtime.images import Fit
    from sana_rt.runtime.inputs import Inputs
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.session import Session

_CLIPS: Final = {".mp4", ".gif", ".png"}
#: After these no other clip can be made either.
_FATAL: Final = (DeviceLostError, StorageError, SystemMemoryError)


@dataclass(frozen=True)
class ListOptions:
    """What holds for all clips of a list: options, the first frame, and how files are written."""

    prompts: Path
    folder: Path
    given: Mapping[str, Any]
    line: Mapping[str, Any]
    wanted: Wanted
    image: Path | None
    fit: Fit
    metadata: bool
    overwrite: bool
    check_finite: bool


@dataclass(frozen=True)
class _Clip:
    """A clip of the list: what is asked for, and the file that it is or will be in."""

    line: int
    request: Request
    record: ClipRecord
    output: str = ""

    @property
    def work(self) -> int:
        """What it costs, in tokens through the transformer."""
        ask = self.request
        return ask.num_frames * ask.height * ask.width * ask.num_inference_steps * ask.batch


def refuse(names: Mapping[str, object]) -> None:
    """Raise :class:`UsageError` for options that are of one clip, given beside ``--prompts``."""
    given = [name for name, value in names.items() if value is not None]
    if given:
        raise UsageError(
            f"{' and '.join(given)} and --prompts are given.",
            expected="options that fit every clip of a list.",
        )


def generate(
    options: ListOptions, opened: Callable[[], Session], *, dry_run: bool, as_json: bool
) -> None:
    """Make what the folder does not have yet; the lines of ``results.jsonl`` say what it has.

    Raises:
        UsageError: a line cannot be played, or a file exists that is another's or was made with
            other settings: nothing was done.
        RequestError: some clips failed; the others are made.
    """
    if options.folder.suffix in _CLIPS and not options.folder.is_dir():
        raise UsageError(
            f"--output {options.folder} is the name of a clip.",
            expected="with --prompts, a folder for all of them.",
        )
    lines = prompt_list.read(options.prompts)
    if options.folder.exists() and options.folder.samefile(options.prompts):
        raise UsageError(
            f"The folder for the videos of --prompts {options.prompts} would be that file.",
            expected="--output with a folder.",
        )
    place = options.folder / NAME
    paths.check({"--output": place}, {"--prompts": options.prompts}, overwrite=True)
    session = opened()
    clips = _clips(options, lines, session)
    if dry_run:
        plans = [session.plan(clip.request, _inputs(options, clip)) for clip in clips]
        show_plan(session, max(plans, key=lambda plan: plan.total_bytes), as_json=as_json)
        return
    with lock(options.folder):
        results = Results(options.folder)
        kept, left = _divided(options, clips, results)
        if kept:
            show.note(f"{len(kept)} of {len(clips)} videos are there already.")
        with _resumable(options, len(clips)):
            _Work(options, session, results, left).run()
    found = [(clip.line, results.latest[clip.output]) for clip in (*kept, *left)]
    _finish(options, dict(sorted(found)), len(kept), as_json=as_json)


def _inputs(options: ListOptions, clip: _Clip) -> Inputs:
    from sana_rt.runtime.inputs import brought

    with notes():
        return brought(clip.request, image=options.image, fit=options.fit)


@contextmanager
def _resumable(options: ListOptions, count: int) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, *_FATAL):
        show.note(
            f"\nThe same command goes on where this stopped: {options.folder / NAME} says which "
            f"of the {count} videos are made."
        )
        raise


def _clips(options: ListOptions, lines: tuple[Line, ...], session: Session) -> tuple[_Clip, ...]:
    """The clips of all lines, judged by the model before anything is made."""
    from sana_rt.runtime import clip_record

    files = hashes({"--image": options.image})
    base = options.wanted.resolve(session.model, options.given, options.line)
    told = set[str]()

    def tell(text: str) -> None:
        if text not in told:
            told.add(text)
            show.note(text)

    def clip(line: Line) -> _Clip:
        wanted = line.wanted
        if wanted.seconds is None and "num_frames" not in line.options:
            wanted = replace(wanted, seconds=options.wanted.seconds)
        conditioned = options.image is not None
        request = wanted.request(
            session,
            {**base, **line.options},
            line.options,
            conditioned=conditioned,
            tell=tell,
            prefix="",
        )
        of = clip_record.of(session, "generate", request, inputs=files, fit=options.fit)
        return _Clip(line.number, request, of)

    return prompt_list.judged(options.prompts, lines, lambda line: line.number, clip)


def _divided(
    options: ListOptions, clips: tuple[_Clip, ...], results: Results
) -> tuple[list[_Clip], list[_Clip]]:
    """The clips that are made, and those that are not, with the names of their files.

    A clip is known by its settings: lines may be added and moved.
    """
    made = defaultdict[bytes, list[str]](list)
    for result in results.latest.values():
        path = options.folder / result.output
        if result.status == "done" and path.is_file() and path.stat().st_size == result.size:
            made[result.settings].append(result.output)
    kept, rest = [], []
    for clip in clips:
        names = made[settings(clip.record)]
        if names:
            kept.append(replace(clip, output=names.pop(0)))
        else:
            rest.append(clip)
    named = _named(rest, {clip.output for clip in kept})
    _check_files(options, named, results)
    return kept, named


def _named(clips: list[_Clip], taken: set[str]) -> list[_Clip]:
    """The clips with names that are not ``taken``, each another."""
    named = []
    for clip in clips:
        stem = f"{clip.line:04d}-{slug(clip.request.prompt)}-{clip.request.seed}"
        named.append(replace(clip, output=free_name(stem, taken.__contains__)))
        taken.add(named[-1].output)
    return named


def _check_files(options: ListOptions, clips: list[_Clip], results: Results) -> None:
    """Nothing is replaced without ``--overwrite`` but what was begun for the same clip."""
    changed = {}
    for clip in clips:
        path, before = options.folder / clip.output, results.latest.get(clip.output)
        if before is not None and before.settings != settings(clip.record):
            changed[clip.output] = "; ".join(_differences(before.record, clip.record))
        elif not path.exists():
            continue
        elif before is None:
            changed[clip.output] = f"{NAME} does not know it"
        elif before.status == "done":
            changed[clip.output] = f"it has {path.stat().st_size:,} bytes, had {before.size:,}"
    if not changed:
        return
    listed = some([f"{name} ({why})" for name, why in changed.items()], 3)
    if not options.overwrite:
        raise UsageError(
            f"{len(changed)} of the videos in {options.folder} are others than asked for: "
            f"{listed}.",
            expected="a folder that was made with these settings, or none.",
            remedy="give another --output, or --overwrite to make these again.",
        )
    show.note(f"Made again: {listed}.")


def _differences(before: ClipRecord, now: ClipRecord) -> Iterator[str]:
    for name, value in now.request.items():
        if before.request.get(name) != value:
            yield f"{name} was {before.request.get(name)}, is {value}"
    for name in ("variant", "source", "fit", "inputs"):
        if getattr(before, name) != getattr(now, name):
            yield f"{name} changed"


@dataclass(frozen=True)
class _Work:
    """The clips that are to be made, in one session."""

    options: ListOptions
    session: Session
    results: Results
    clips: list[_Clip]

    def run(self) -> None:
        """Make them; one that fails is recorded, and the next one begun."""
        begun, done, total = time.monotonic(), 0, sum(clip.work for clip in self.clips)
        for index, clip in enumerate(self.clips, 1):
            count = f"{index} of {len(self.clips)}"
            result = self._one(clip, count)
            self.results.add(result)
            done += clip.work
            left = (time.monotonic() - begun) / done * (total - done)
            rest = f"; about {_minutes(left)} left" if done < total else ""
            why = "" if result.error is None else f" failed: {result.error.partition(chr(10))[0]}"
            show.note(f"{count}: {clip.output}{why}, {result.seconds:.3g} s{rest}")

    def _one(self, clip: _Clip, count: str) -> Result:
        started = Result(clip.output, "started", clip.line, clip.record)
        self.results.add(started)
        begun = time.monotonic()
        reporter = Reporter(title=f"{count}: ")
        try:
            with reporter.shown():
                size = self._play(clip, reporter)
        except _FATAL:
            raise
        except SanaRTError as error:
            return started.ended(time.monotonic() - begun, error=str(error))
        return started.ended(time.monotonic() - begun, size=size)

    def _play(self, clip: _Clip, reporter: Reporter) -> int:
        path = self.options.folder / clip.output
        inputs = _inputs(self.options, clip)
        target = ClipOutput(path, None, self.options.metadata, overwrite=True)
        frames = clip.request.num_frames
        with target.writing(clip.request, clip.record, reporter, frames=frames) as write:
            for made in self.session.generate(
                clip.request,
                inputs,
                progress=reporter,
                check_finite=self.options.check_finite,
            ):
                write(made)
        return path.stat().st_size


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _finish(options: ListOptions, found: dict[int, Result], kept: int, *, as_json: bool) -> None:
    """Say what there is by line, and raise an error if some of it is not."""
    failed = [str(line) for line, result in found.items() if result.status == "failed"]
    if as_json:
        shown = [{"line": line, **_facts(result)} for line, result in found.items()]
        counts = {"made": len(found) - kept - len(failed), "kept": kept, "failed": len(failed)}
        show.json({"output": str(options.folder), **counts, "results": shown})
    else:
        click.echo(options.folder)
    if failed:
        raise RequestError(
            f"{len(failed)} of {len(found)} videos failed: those of the lines {some(failed)}.",
            expected="all of them.",
            remedy=f"see {options.folder / NAME}; the same command tries them again.",
        )


def _facts(result: Result) -> dict[str, Any]:
    names = ("output", "status", "size", "seconds", "error")
    return {name: getattr(result, name) for name in names}
