"""The C interface through ctypes: what a program in C would see, as numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import (
    POINTER,
    byref,
    c_bool,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OK, DONE = 0, 1
SOLVERS = {"dpmpp_2m": 1, "flow_euler": 2, "renoise": 3}


class _Sized(ctypes.Structure):
    def __init__(self) -> None:
        super().__init__(ctypes.sizeof(type(self)))


class SessionOptions(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("variant", c_char_p),
        ("backend", c_char_p),
        ("threads", c_int32),
        ("keep_text_encoder", c_bool),
        ("check_finite", c_bool),
        ("progress", c_void_p),
        ("progress_user", c_void_p),
        ("log", c_void_p),
        ("log_user", c_void_p),
        ("timeout", c_double),
        ("plugin", c_char_p),
        ("kernel_cache", c_char_p),
    ]


class DeviceInfo(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("backend", c_char_p),
        ("available", c_bool),
        ("reason", c_char_p),
    ]


class TimedPrompt(ctypes.Structure):
    _fields_ = [("seconds", c_double), ("prompt", c_char_p)]


class ClipParams(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("prompt", c_char_p),
        ("negative_prompt", c_char_p),
        ("height", c_int32),
        ("width", c_int32),
        ("num_frames", c_int32),
        ("seconds", c_double),
        ("num_inference_steps", c_int32),
        ("guidance_scale", c_double),
        ("solver", c_int),
        ("flow_shift", c_double),
        ("fps", c_int32),
        ("motion_score", c_int32),
        ("seed", c_uint64),
        ("has_seed", c_bool),
        ("lowercase", c_bool),
        ("timesteps", POINTER(c_double)),
        ("timestep_count", c_size_t),
        ("image", c_void_p),
        ("image_stride", c_size_t),
        ("noise", c_void_p),
        ("noise_count", c_size_t),
        ("prompt_embeds", c_void_p),
        ("prompt_embed_count", c_size_t),
        ("prompt_mask", c_void_p),
        ("prompt_mask_count", c_size_t),
        ("stream", c_bool),
        ("prompts", POINTER(TimedPrompt)),
        ("prompt_count", c_size_t),
        ("recommit", c_bool),
        ("resume", c_void_p),
    ]


class Frames(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("rgb", POINTER(c_uint8)),
        ("count", c_size_t),
        ("height", c_int32),
        ("width", c_int32),
        ("stride", c_size_t),
        ("frame_stride", c_size_t),
        ("first_frame", c_int64),
    ]


class NativeError(Exception):
    """A status that is neither OK nor Done; ``name`` is that of Python's error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class Library:
    """The shared library."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.sana_status_name.restype = c_char_p
        self.c.sana_version.restype = c_char_p
        for kind in ("model", "session", "clip", "state"):
            getattr(self.c, f"sana_{kind}_error").restype = c_char_p
            getattr(self.c, f"sana_{kind}_error").argtypes = [c_void_p]
            getattr(self.c, f"sana_{kind}_free").argtypes = [c_void_p]
            getattr(self.c, f"sana_{kind}_free").restype = None
        self.c.sana_clip_cancel.argtypes = [c_void_p]

    def open(self, bundle: Path, **options: Any) -> Session:
        """A session on a bundle."""
        return Session(self, bundle, options)

    def devices(self) -> dict[str, str]:
        """Why each backend is not available; nothing if it is."""
        self.c.sana_device_count.restype = c_size_t
        self.c.sana_device_describe.argtypes = [c_size_t, c_void_p]
        found = {}
        for index in range(self.c.sana_device_count()):
            info = DeviceInfo()
            assert self.c.sana_device_describe(index, byref(info)) == OK
            assert info.available == (not info.reason)
            found[info.backend.decode()] = info.reason.decode()
        return found

    def load(self, path: Path) -> State:
        """A state from its file."""
        handle = c_void_p()
        status = self.c.sana_state_load(str(path).encode(), byref(handle))
        state = State(self, handle)
        state.check(status)
        return state


class _Handle:
    kind = ""

    def __init__(self, library: Library, handle: c_void_p) -> None:
        self._library, self._c, self.handle = library, library.c, handle

    def __del__(self) -> None:
        getattr(self._c, f"sana_{self.kind}_free")(self.handle)

    def check(self, status: int) -> int:
        """Raise the error that a status stands for."""
        if status not in (OK, DONE):
            text = getattr(self._c, f"sana_{self.kind}_error")(self.handle).decode()
            raise NativeError(self._c.sana_status_name(status).decode(), text)
        return status


class State(_Handle):
    kind = "state"

    def save(self, path: Path) -> None:
        """Write its file."""
        self.check(self._c.sana_state_save(self.handle, str(path).encode()))


class Model(_Handle):
    kind = "model"

    def __init__(self, library: Library, bundle: Path) -> None:
        super().__init__(library, c_void_p())
        self.check(self._c.sana_model_open(str(bundle).encode(), byref(self.handle)))


class Session(_Handle):
    kind = "session"

    def __init__(self, library: Library, bundle: Path, options: dict[str, Any]) -> None:
        super().__init__(library, c_void_p())
        self.model = Model(library, bundle)
        given = SessionOptions()
        for name, value in options.items():
            setattr(given, name, value)
        self.check(self._c.sana_session_open(self.model.handle, byref(given), byref(self.handle)))

    def start(self, prompt: str | None = None, **options: Any) -> Clip:
        """A clip; ``options`` are fields of ``sana_clip_params``, or what they are in Python."""
        return Clip(self._library, self, params(prompt, **options))


class Clip(_Handle):
    kind = "clip"

    def __init__(self, library: Library, session: Session, given: ClipParams) -> None:
        super().__init__(library, c_void_p())
        self._session = session
        status = self._c.sana_clip_start(session.handle, byref(given), byref(self.handle))
        self.check(status)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Copies of the frames u8 [n, height, width, 3]."""
        frames = Frames()
        while self.check(self._c.sana_clip_next(self.handle, byref(frames))) != DONE:
            shape = frames.count, frames.height, frames.width, 3
            yield np.ctypeslib.as_array(frames.rgb, shape).copy()

    def cancel(self) -> None:
        """End it at its next step."""
        self._c.sana_clip_cancel(self.handle)

    def state(self) -> State:
        """What continues it."""
        state = State(self._library, c_void_p())
        state.check(self._c.sana_clip_state(self.handle, byref(state.handle)))
        return state


def params(prompt: str | None = None, **options: Any) -> ClipParams:
    """``sana_clip_params`` of options as Python has them."""
    given = ClipParams()
    given.guidance_scale, given.motion_score = -1.0, -(2**31)
    given.prompt = None if prompt is None else prompt.encode()
    for name, value in options.items():
        _set(given, name, value)
    return given


def _set(given: ClipParams, name: str, value: Any) -> None:
    if name == "seed":
        given.seed, given.has_seed = value, True
    elif name == "motion_score" and value is None:
        given.motion_score = -(2**31) + 1
    elif name == "solver":
        given.solver = SOLVERS[value]
    elif name == "timesteps":
        given.timesteps, given.timestep_count = (c_double * len(value))(*value), len(value)
    elif name == "prompts":
        timed = (TimedPrompt(second, text.encode()) for second, text in value.items())
        given.prompts, given.prompt_count = (TimedPrompt * len(value))(*timed), len(value)
    elif name == "resume":
        given.resume = value.handle
    elif name in {"noise", "prompt_embeds", "prompt_mask", "image"}:
        array = np.ascontiguousarray(value)
        setattr(given, f"_{name}", array)  # keeps it alive
        setattr(given, name, array.ctypes.data)
        if name != "image":
            count = {"noise": "noise_count", "prompt_embeds": "prompt_embed_count"}
            setattr(given, count.get(name, "prompt_mask_count"), array.size)
    else:
        setattr(given, name, value.encode() if isinstance(value, str) else value)
