"""``sana_rt.open`` and what it returns: the public interface, described in docs/python.md."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any, Self

from sana_rt.errors import CanceledError, UsageError
from sana_rt.runtime import backends
from sana_rt.runtime.autoencoder import Frames
from sana_rt.runtime.backends.base import DEFAULT_OPTIONS
from sana_rt.runtime.inputs import Array, PathLike, brought
from sana_rt.runtime.memory import MemoryPlan
from sana_rt.runtime.pipeline import Progress
from sana_rt.runtime.prompt_schedule import scheduled
from sana_rt.runtime.request import Request, asked
from sana_rt.runtime.session import Session
from sana_rt.runtime.state import State
from sana_rt.runtime.stream import Stream

ProgressCallback = Callable[[Progress], bool | None]


def open(  # noqa: A001 - users call it sana_rt.open
    bundle: PathLike,
    *,
    variant: str | None = None,
    backend: str = backends.AUTO,
    threads: int | None = None,
    keep_text_encoder: bool = False,
    cuda_graph: bool = True,
    timeout: float = DEFAULT_OPTIONS.timeout,
    max_memory: int | str | None = None,
) -> Player:
    """Open a bundle to play it; weights are loaded when they are first needed.

    Without ``variant`` the backend plays the one that is not quantized and suits it best.
    ``threads`` are those of the CPU, by default all that the process may use.
    ``keep_text_encoder`` keeps the text encoder's weights for the next prompt instead of making
    room for the other graphs. ``max_memory``, bytes or a size such as ``"8GB"``, bounds what a
    clip takes of the device: what does not fit at the same time is loaded in turns.
    ``cuda_graph`` lets a GPU's backend launch each step as one CUDA graph; ``timeout`` is how
    many seconds a GPU may take to answer before it is given up.

    Raises:
        UsageError: there is no such backend, ``bundle`` is no path, or ``threads``, ``max_memory``
            or ``timeout`` is out of range.
        ManifestError: no bundle, or a damaged one, or it has no such variant.
        BackendError: no backend can play it; each one's reason is listed.
    """
    _check_type("bundle", bundle, (str, os.PathLike), "the path of a bundle.")
    session = Session.open(
        bundle,
        variant=variant,
        backend=backend,
        threads=threads,
        keep_text_encoder=keep_text_encoder,
        cuda_graph=cuda_graph,
        timeout=timeout,
        max_memory=max_memory,
    )
    return Player(session)


class Player:
    """Plays a bundle, one clip at a time: starting another ends the one before it.

    One thread at a time uses it; only :meth:`cancel` may be called from another.
    """

    def __init__(self, session: Session) -> None:
        self._opened: Session | None = session
        self._clip = _Clip(None)

    def __enter__(self) -> Self:
        """Itself; the end of the ``with`` closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """See :meth:`close`."""
        self.close()

    def close(self) -> None:
        """Give back memory and the device; a clip that is being made ends."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def cancel(self) -> None:
        """End the clip that is being made with :class:`CanceledError`, at its next step.

        Without such a clip it does nothing. It may be called from any thread.
        """
        self._clip.canceled = True

    def request(
        self,
        prompt: str | Request | None = None,
        *,
        seconds: float | None = None,
        image: object = None,
        resume: State | None = None,
        **options: Any,
    ) -> Request:
        """What to make: ``options`` (fields of :class:`Request`) on top of the model's defaults.

        With ``resume``, on top of the request that the stream was made with; with a request
        as ``prompt``, on top of that. ``seconds`` say ``num_frames`` in another way. With any
        ``image`` the default solver is the one for image-to-video.

        Raises:
            UsageError: an unknown option, or a value of the wrong type or out of range.
            RequestError: a value that this model cannot serve.
        """
        _check_type("resume", resume, State, "a State, as State.load(path) reads it.")
        _check_type("seconds", seconds, Real, "a number.")
        if prompt is not None and not isinstance(prompt, Request):
            options["prompt"] = prompt
        before = resume.header.request if resume is not None else None
        return asked(
            self._session.model,
            options,
            before=prompt if isinstance(prompt, Request) else before,
            seconds=seconds,
            conditioned=image is not None,
        )

    def plan(
        self,
        prompt: str | Request | None = None,
        *,
        image: Array | PathLike | None = None,
        prompt_embeds: Mapping[str, Array] | PathLike | None = None,
        **options: Any,
    ) -> MemoryPlan:
        """The memory that :meth:`generate` or :meth:`stream` would need; allocates nothing."""
        request = self.request(prompt, image=image, **options)
        inputs = brought(request, image=image, prompt_embeds=prompt_embeds)
        return self._session.plan(request, inputs)

    def generate(
        self,
        prompt: str | Request | None = None,
        *,
        image: Array | PathLike | None = None,
        noise: Array | PathLike | None = None,
        prompt_embeds: Mapping[str, Array] | PathLike | None = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> Iterator[Frames]:
        """Make a clip; yields u8 [n, height, width, 3] as soon as a latent frame is decoded.

        ``options`` are those of :meth:`request`. Instead of being made here may be given:
        ``image`` u8 [height, width, 3], the first frame; ``noise`` f32 [1, C, T, h, w], what is
        denoised; ``prompt_embeds``, arrays named like diffusers' arguments. A path to a file
        stands for each. ``progress`` is called between steps; where it returns False, the clip
        is canceled.

        Raises:
            UsageError, RequestError: as for :meth:`request`; or there is no prompt.
            DeviceMemoryError: the clip's memory does not fit.
            CanceledError: here while graphs are loaded, later by the iterator.
        """
        _check_prompted(prompt, options, prompt_embeds)
        request = self.request(prompt, image=image, **options)
        inputs = brought(request, image=image, noise=noise, prompt_embeds=prompt_embeds)
        with self._starting(progress) as clip:
            return self._session.generate(request, inputs, progress=clip)

    def stream(
        self,
        prompt: str | Request | None = None,
        *,
        seconds: float | None = None,
        prompts: Mapping[float, str] | None = None,
        recommit: bool = False,
        resume: State | None = None,
        image: Array | PathLike | None = None,
        noise: Array | PathLike | None = None,
        prompt_embeds: Mapping[str, Array] | PathLike | None = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> Stream:
        """Make a clip of any length with a block-causal model; yields frames like ``generate``.

        ``prompts`` are those that take over, by the second at which each does; with ``recommit``
        the chunk before is remembered under the new prompt. ``resume`` continues a stream:
        ``seconds`` count from its beginning, and what is not given stays as it was.

        Raises:
            UsageError, RequestError: as for :meth:`generate`, or the prompts or the model do not
                fit.
            StateError: ``resume`` is of another model, variant or size.
        """
        _check_type("prompts", prompts, Mapping, "prompts by second, as {3.0: prompt}.")
        for second, later in (prompts or {}).items():
            _check_type("A second of prompts", second, Real, "a number.")
            _check_type("A prompt", later, str, "a str.")
        text = prompt.prompt if isinstance(prompt, Request) else prompt
        first, schedule = scheduled(text, (prompts or {}).items(), recommit=recommit)
        if prompt is None:
            prompt = first
        if resume is None:
            _check_prompted(prompt, options, prompt_embeds)
        request = self.request(prompt, seconds=seconds, image=image, resume=resume, **options)
        inputs = brought(request, image=image, noise=noise, prompt_embeds=prompt_embeds)
        with self._starting(progress) as clip:
            return self._session.stream(
                request, inputs, schedule=schedule, resume=resume, progress=clip
            )

    @property
    def _session(self) -> Session:
        if self._opened is None:
            raise UsageError("The player is closed.", remedy="open the bundle again.")
        return self._opened

    @contextlib.contextmanager
    def _starting(self, progress: ProgressCallback | None) -> Iterator[_Clip]:
        """The clip that ``cancel`` ends from here on, or the one before if this one is refused."""
        before, self._clip = self._clip, _Clip(progress)
        try:
            yield self._clip
        except BaseException:
            self._clip = before
            raise


class _Clip:
    """Passes progress on to the caller, and ends the clip where it was canceled."""

    def __init__(self, progress: ProgressCallback | None) -> None:
        self._progress = progress
        self.canceled = False  # another thread may set it

    def __call__(self, progress: Progress) -> None:
        answer = None if self._progress is None else self._progress(progress)
        if answer is not None and not answer:  # False, or numpy's
            self.canceled = True
        if self.canceled:
            raise CanceledError(
                f"The clip was canceled ({progress.stage}: {progress.done} of {progress.total})."
            )


def _check_prompted(
    prompt: str | Request | None, options: Mapping[str, Any], prompt_embeds: object
) -> None:
    if prompt is None and "prompt" not in options and prompt_embeds is None:
        raise UsageError("There is no prompt.", expected="a prompt, a Request, or prompt_embeds.")
    if prompt_embeds is not None and (isinstance(prompt, str) or "prompt" in options):
        raise UsageError(
            "A prompt and prompt_embeds are both given.",
            expected="one of the two: the embeddings take the place of the prompt.",
        )


def _check_type(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{name} is of type {type(value).__name__}.", expected=expected)
