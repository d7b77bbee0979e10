"""A generation request: what to make, checked against the model before anything is loaded."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from sana_rt import documents, geometry
from sana_rt.errors import RequestError, UsageError, some
from sana_rt.model_spec import Frozen, ModelSpec, SolverName
from sana_rt.runtime import solver

MAX_SEED: Final = 2**64 - 1
MAX_FPS: Final = 240

#: Of 64 bits: far more than any model takes, and with few enough digits to show.
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Timestep = Annotated[float, Meta(gt=0, le=solver.TRAIN_TIMESTEPS)]
Timesteps = Annotated[tuple[Timestep, ...], Meta(min_length=1)]


class Request(Frozen, frozen=True):
    """One clip. The names are diffusers'; the defaults are the model's (:func:`for_model`).

    ``height`` and ``width`` are pixels; ``guidance_scale`` 1 leaves the negative prompt out;
    ``motion_score`` None says nothing about motion; ``flow_shift`` moves the schedule to noise.
    """

    prompt: str
    negative_prompt: str
    height: Integer
    width: Integer
    num_frames: Integer
    num_inference_steps: Annotated[int, Meta(ge=1, le=solver.TRAIN_TIMESTEPS)]
    guidance_scale: Annotated[float, Meta(ge=0, lt=1e4)]
    solver: SolverName
    flow_shift: Annotated[float, Meta(gt=0, lt=1e4)]
    fps: Annotated[int, Meta(ge=1, le=MAX_FPS)]
    motion_score: Integer | None
    # msgspec's bounds are those of 64-bit signed integers; `_check` has the upper one.
    seed: Annotated[int, Meta(ge=0)] = 0
    lowercase: bool = False  # what diffusers does to a prompt; the original script keeps its case
    timesteps: Timesteps | None = None  # of the solver 'renoise'; None are the model's

    @property
    def batch(self) -> int:
        """Samples of a forward pass: the negative prompt's, if guided, then the prompt's."""
        return geometry.batch_size(self.guidance_scale)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part."""
        return self.batch == 2


def for_model(
    model: ModelSpec, options: Mapping[str, Any], *, conditioned: bool = False
) -> Request:
    """A request of ``options`` on top of the model's defaults.

    ``conditioned`` says that the first frame is given, for which flow Euler is the default.

    Raises:
        UsageError: an unknown option, or a value of the wrong type or out of range.
        RequestError: a value that this model cannot serve.
    """
    defaults = _defaults(model, options, conditioned=conditioned)
    try:
        request = msgspec.convert({**defaults, **options}, Request)
    except msgspec.ValidationError as error:
        raise _invalid({**defaults, **options}, str(error)) from error
    except UnicodeEncodeError as error:
        raise UsageError(f"An option is not text: {error}.", expected="Unicode.") from error
    _check(request, model)
    return request


def continued(before: Request, model: ModelSpec, options: Mapping[str, Any]) -> Request:
    """A request of ``options`` on top of ``before``; errors as for :func:`for_model`."""
    saved = msgspec.structs.asdict(before)
    if options.keys() & {"solver", "timesteps"}:  # what the model's defaults then decide anew
        saved = {name: saved[name] for name in saved if name not in _SCHEDULE}
    return for_model(model, saved | dict(options))


_WHERE: Final = re.compile(r"Expected (?P<expected>.*?)(, got .*)? - at `\$\.(?P<name>\w+).*`")
_SHOWN_CHARS: Final = 80
_SCHEDULE: Final = {"num_inference_steps", "flow_shift", "timesteps"}


def asked(
    model: ModelSpec,
    options: Mapping[str, Any],
    *,
    before: Request | None = None,
    seconds: float | None = None,
    conditioned: bool = False,
) -> Request:
    """A request of ``options``, on top of ``before`` if given, and of at least ``seconds``.

    Errors as for :func:`for_model`.
    """

    def made(options: Mapping[str, Any]) -> Request:
        if before is not None:
            return continued(before, model, options)
        return for_model(model, options, conditioned=conditioned)

    request = made(options)
    if seconds is None:
        return request
    if "num_frames" in options:
        raise UsageError("Both seconds and num_frames are given.", expected="one of the two.")
    if not 0 < seconds <= sys.float_info.max:
        raise UsageError(
            f"The length asked for is {_shown(seconds)} s.",
            expected="a finite number of seconds, more than 0.",
        )
    return made({**options, "num_frames": geometry.num_frames(seconds, request.fps, model)})


def read_options(path: Path) -> dict[str, Any]:
    """Options from a TOML file whose keys are the fields of :class:`Request`."""
    options = documents.read(
        path,
        documents.toml,
        dict[str, Any],
        lambda reason: UsageError(f"{path} is not TOML: {reason}."),
    )
    unknown = [f"{path}: {key}" for key in options if key not in Request.__struct_fields__]
    if unknown:
        raise UsageError(
            f"Unknown keys: {some(unknown)}.",
            expected=f"keys among {', '.join(Request.__struct_fields__)}.",
        )
    return options


def dims(request: Request, model: ModelSpec) -> dict[str, int]:
    """Every named dimension of the graphs but ``frames`` and ``length`` (docs/architecture.md)."""
    size = geometry.size_dims(model, request.height, request.width)
    return {"batch": request.batch, **size}


def schedule(request: Request, model: ModelSpec) -> tuple[solver.Step, ...]:
    """The steps of the request's solver."""
    if request.solver == "renoise":
        return solver.renoise(timesteps(request, model), request.flow_shift)
    if request.solver == "flow_euler":
        return solver.flow_euler(request.num_inference_steps, request.flow_shift)
    return solver.dpmpp_2m(request.num_inference_steps, request.flow_shift)


def timesteps(request: Request, model: ModelSpec) -> tuple[float, ...]:
    """What the solver 'renoise' goes through: the request's list, else the model's."""
    return request.timesteps or model.chunking.timesteps


def _invalid(options: Mapping[str, Any], reason: str) -> UsageError:
    """What msgspec found, with the value: its messages end with where, `$.name` or `$.name[0]`."""
    found = _WHERE.fullmatch(reason)
    if found is None:
        return UsageError(f"The request is not valid: {reason}.")
    shown = _shown(options.get(found["name"]))
    expected = found["expected"].replace("`", "")
    return UsageError(f"{found['name']} is {shown}.", expected=f"{expected}.")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "a value with thousands of digits"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _defaults(model: ModelSpec, options: Mapping[str, Any], *, conditioned: bool) -> dict[str, Any]:
    sampling = model.sampling
    defaults: dict[str, Any] = {"prompt": "", **msgspec.structs.asdict(sampling)}
    if conditioned and sampling.solver == "dpmpp_2m":
        defaults["solver"] = "flow_euler"
    if (options.get("solver") or defaults["solver"]) == "renoise":
        given = options.get("timesteps")
        count = len(given) if isinstance(given, list | tuple) else len(model.chunking.timesteps)
        defaults |= {"num_inference_steps": count, "flow_shift": model.chunking.flow_shift}
    return defaults


def _check(request: Request, model: ModelSpec) -> None:
    geometry.check_positions(model, request.num_frames, request.height, request.width, request.fps)
    if request.seed > MAX_SEED:
        raise RequestError(f"The seed is {_shown(request.seed)}.", expected=f"0 to {MAX_SEED}.")
    if request.solver == "renoise":
        _check_renoise(request, model)
    elif request.timesteps is not None:
        raise RequestError(
            f"Timesteps are given for the solver {request.solver!r}.",
            expected="timesteps only with 'renoise'; the other solvers take num_inference_steps.",
        )


def _check_renoise(request: Request, model: ModelSpec) -> None:
    if model.streaming is None:
        raise RequestError(
            f"The solver 'renoise' does not fit {model.name!r}.",
            expected="a model that was distilled to few steps.",
            remedy="choose dpmpp_2m or flow_euler.",
        )
    steps = timesteps(request, model)
    if list(steps) != sorted(set(steps), reverse=True):
        raise RequestError(
            f"The timesteps are {', '.join(f'{step:g}' for step in steps)}.",
            expected="descending values; the pass at 0 is added automatically.",
        )
    if request.num_inference_steps != len(steps):
        raise RequestError(
            f"num_inference_steps is {request.num_inference_steps} for the solver 'renoise'.",
            expected=f"{len(steps)}, the timesteps "
            + ("given." if request.timesteps else "the model was distilled to."),
            remedy="leave num_inference_steps out, or choose another solver.",
        )
