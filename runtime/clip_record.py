"""What a clip was made of: written into its file, read back from there."""

from __future__ import annotations

import platform
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from sana_rt import __version__, documents
from sana_rt.documents import DocumentError
from sana_rt.errors import RequestError
from sana_rt.manifest import Quantization, Source
from sana_rt.model_spec import Frozen
from sana_rt.runtime import comments
from sana_rt.runtime.prompt_schedule import NO_CHANGES, PromptSchedule, TimedPrompt

if TYPE_CHECKING:
    from sana_rt.runtime.images import Fit
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.session import Session

Command = Literal["generate", "stream"]
Value = str | int | float | bool | tuple[float, ...] | None  # of an option

_FLAGS: Final = {"lowercase"}


class ClipRecord(Frozen, frozen=True):
    """All that decides what a clip shows.

    ``request`` are the fields of the request; ``prompts`` those that took over, ``inputs`` the
    SHA-256 of files that were brought along, by their option; ``fit`` is how an image was
    brought to size. Nothing says where files lay.
    """

    command: Command
    model: str
    source: Source
    variant: str
    request: dict[str, Value]
    quantization: Quantization | None = None
    prompts: tuple[TimedPrompt, ...] = ()
    recommit: bool = False
    fit: Literal["crop", "stretch", "pad"] | None = None
    inputs: dict[str, str] = msgspec.field(default_factory=dict)
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    format: Literal["sana-rt-clip"] = "sana-rt-clip"
    format_version: Literal[1] = 1

    @property
    def prompt(self) -> str:
        """The prompt that the clip begins with."""
        return str(self.request.get("prompt", ""))

    @property
    def tags(self) -> comments.Tags:
        """What goes into the file: the prompt as its title, and all of this as its comment."""
        text = msgspec.json.encode(self).decode()
        return {"title": self.prompt, "comment": text}

    def command_line(self) -> str:
        """The command that makes the clip again; files and the bundle are to be filled in."""
        options = {name: value for name, value in self.request.items() if name != "prompt"}
        words = [word for name, value in options.items() for word in _option(name, value)]
        words += ["--variant", self.variant]
        for option in self.inputs:
            words += [option, "FILE"]
        if self.fit is not None:
            words += ["--fit", self.fit]
        for later in self.prompts:
            words += ["--prompt-at", f"{later.seconds:g}", later.prompt]
        if self.recommit:
            words.append("--recommit")
        first = [] if "--prompt-embeds" in self.inputs else [self.prompt]
        if self.prompt.startswith("-"):  # which would be read as an option
            first, words = [], [*words, "--", *first]
        return shlex.join(["sana-rt", self.command, "BUNDLE", *first, *words])


def of(
    session: Session,
    command: Command,
    request: Request,
    *,
    inputs: dict[str, str],
    fit: Fit,
    schedule: PromptSchedule = NO_CHANGES,
) -> ClipRecord:
    """The record of a clip that a session makes."""
    import onnxruntime  # noqa: PLC0415 (loads its library, and those who read records need none)

    name = session.graphs.variant
    variant = session.bundle.manifest.variant(name)
    return ClipRecord(
        command=command,
        model=session.model.name,
        source=variant.source,
        variant=name,
        quantization=variant.quantization,
        request=msgspec.to_builtins(request),
        prompts=schedule.prompts,
        recommit=schedule.recommit,
        fit=fit if "--image" in inputs else None,
        inputs=inputs,
        versions={
            "sana-rt": __version__,
            session.backend: onnxruntime.__version__,
            "python": platform.python_version(),
        },
    )


def read(path: Path) -> ClipRecord:
    """The record in an mp4, a GIF or a PNG.

    Raises:
        RequestError: the file has none.
        StorageError: it cannot be read.
    """
    comment = comments.read(path)
    if comment is None:
        raise RequestError(
            f"{path} has no comment.",
            expected="an mp4, GIF or PNG that `sana-rt generate` or `sana-rt stream` wrote, "
            "without --no-metadata.",
        )
    try:
        return documents.json(comment.encode(), ClipRecord)
    except DocumentError as error:
        raise RequestError(
            f"The comment of {path} is not a record of this release: {error}.",
            expected="what `sana-rt generate` or `sana-rt stream` writes.",
        ) from error


def _option(name: str, value: Value) -> list[str]:
    """A field of a request as words of the command line."""
    option = f"--{name.replace('_', '-')}"
    if name in _FLAGS:
        return [option] if value else []
    if name == "motion_score" and value is None:
        return ["--no-motion-score"]
    if value is None:
        return []
    if isinstance(value, tuple):
        return [option, ",".join(f"{each:g}" for each in value)]
    return [option, str(value)]
