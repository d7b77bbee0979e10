"""Size and length as people say them: ``--aspect``, ``--size`` and ``--seconds``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sana_rt import frame_sizes
from sana_rt.cli import output as show
from sana_rt.errors import UsageError
from sana_rt.frame_sizes import Size
from sana_rt.model_spec import ModelSpec

if TYPE_CHECKING:
    from sana_rt.runtime.request import Request
    from sana_rt.runtime.session import Session
    from sana_rt.runtime.state import State


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None where it was not."""

    aspect: str | None = None
    size: str | None = None
    seconds: float | None = None

    def request(
        self,
        session: Session,
        given: Mapping[str, Any],
        line: Mapping[str, Any],
        *,
        conditioned: bool,
        resume: State | None = None,
        tell: Callable[[str], None] = show.note,
        prefix: str = "--",
    ) -> Request:
        """A request of the options ``given``, with this size and length; says what they became.

        Errors call options by their names with the ``prefix``.

        Raises what :meth:`resolve` and :meth:`Session.request` do.
        """
        options = self.resolve(session.model, given, line, tell, prefix)
        made = session.request(
            resume=resume, seconds=self.seconds, conditioned=conditioned, **options
        )
        self._tell_length(made, tell)
        return made

    def resolve(
        self,
        model: ModelSpec,
        given: Mapping[str, Any],
        line: Mapping[str, Any],
        tell: Callable[[str], None] = show.note,
        prefix: str = "--",
    ) -> dict[str, Any]:
        """The options ``given`` with the height and width that follow.

        They take the place of those of a configuration file, but not of those that were given
        beside them, on the ``line``; so do the seconds.

        Raises:
            UsageError: two options say the size, or one that cannot be read.
        """
        options = dict(given)
        if self.seconds is not None and line.get("num_frames") is None:
            options.pop("num_frames", None)
        sides = [side for side in ("height", "width") if line.get(side) is not None]
        ways = [name for name in ("aspect", "size") if getattr(self, name) is not None]
        names = [f"{prefix}{name}" for name in (*ways, *sides)]
        if not ways:
            return options
        if len(names) > 1:
            raise UsageError(
                f"{' and '.join(names)} are given.", expected="one way of saying the size."
            )
        size = self._size(model, tell)
        return {**options, "height": size.height, "width": size.width}

    def _size(self, model: ModelSpec, tell: Callable[[str], None]) -> Size:
        if self.aspect is not None:
            size = frame_sizes.of_aspect(model, *frame_sizes.parse(self.aspect, ":/"))
            tell(f"Note: {self.aspect} is {size}, the nearest size of {model.name}.")
            return size
        assert self.size is not None
        width, height = frame_sizes.parse(self.size.lower(), "x×*")
        size = frame_sizes.nearest(model, width, height)
        if size != (width, height):
            multiples = " and ".join(map(str, model.size_multiples[::-1]))
            least, most = Size(*model.least_size[::-1]), Size(*model.greatest_size[::-1])
            tell(
                f"Note: {self.size} becomes {size}: {model.name} makes widths and heights that "
                f"are multiples of {multiples}, from {least} to {most}."
            )
        return size

    def _tell_length(self, request: Request, tell: Callable[[str], None]) -> None:
        """Say what became of the seconds, where it is not just what was asked for."""
        made = request.num_frames / request.fps
        if self.seconds is not None and abs(made - self.seconds) > 1 / (2 * request.fps):
            tell(
                f"Note: {self.seconds:g} s become {request.num_frames} frames, {made:.4g} s: one "
                "frame, then whole latent frames."
            )
