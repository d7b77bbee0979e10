"""What a caller may bring along: noise, prompt embeddings, the first frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sana_rt import geometry
from sana_rt.array_files import (
    ArrayArchive,
    DamagedArrayError,
    StoredArray,
    is_archive,
    read_npy,
)
from sana_rt.errors import RequestError
from sana_rt.model_spec import ModelSpec
from sana_rt.runtime.request import Request

if TYPE_CHECKING:
    from sana_rt.runtime.images import Fit

Array = NDArray[Any]
PathLike = str | os.PathLike[str]

_POSITIVE: Final = ("prompt_embeds", "prompt_attention_mask")
_NEGATIVE: Final = ("negative_prompt_embeds", "negative_prompt_attention_mask")


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """What the transformer sees of one prompt: hidden states f32 [1, S, Ct], mask i64 [1, S]."""

    hidden_states: NDArray[np.float32]
    attention_mask: NDArray[np.int64]


#: Of one clip: the negative prompt's, if guided, then the prompt's.
Embeds = tuple[PromptEmbeds, ...]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Tensors in place of what the runtime would make itself, and the first frame if given.

    ``noise`` f32 [1, C, T, h, w] is what the chunks start from. ``prompt_embeds`` holds the
    negative prompt's, if guided, then the prompt's. ``image`` is u8 [height, width, 3].
    """

    noise: NDArray[np.float32] | None = None
    prompt_embeds: Embeds | None = None
    image: NDArray[np.uint8] | None = None

    def check(self, request: Request, model: ModelSpec) -> None:
        """Raise :class:`RequestError` for a tensor that does not fit the request."""
        if self.noise is not None:
            _check("noise", self.noise, "float32", latents_shape(request, model))
        if self.image is not None:
            _check("image", self.image, "uint8", (request.height, request.width, 3))
        if self.prompt_embeds is not None:
            self._check_embeds(self.prompt_embeds, request, model)

    def _check_embeds(self, embeds: Embeds, request: Request, model: ModelSpec) -> None:
        if len(embeds) != request.batch:
            raise RequestError(
                f"There are embeddings of {len(embeds)} prompts.",
                expected=f"{request.batch} with guidance_scale {request.guidance_scale}.",
            )
        length, channels = model.text.max_tokens, model.transformer.caption_channels
        for one in embeds:
            _check("prompt embeds", one.hidden_states, "float32", (1, length, channels))
            _check("prompt attention mask", one.attention_mask, "int64", (1, length))
            if not np.isin(one.attention_mask, (0, 1)).all() or not one.attention_mask.any():
                raise RequestError(
                    "A prompt attention mask has values other than 0 and 1, or only zeros.",
                    expected="1 for each token to attend to, else 0, and at least one 1.",
                )


NO_INPUTS: Final = Inputs()


def latents_shape(request: Request, model: ModelSpec) -> tuple[int, ...]:
    """Shape of a clip's latents: (1, C, T, h, w)."""
    return geometry.latents_shape(model, request.num_frames, request.height, request.width)


def brought(
    request: Request,
    *,
    noise: Array | PathLike | None = None,
    prompt_embeds: Mapping[str, Array] | PathLike | None = None,
    image: Array | PathLike | None = None,
    fit: Fit = "crop",
) -> Inputs:
    """What a caller brings along for ``request``, as arrays or as the files that hold them.

    A picture in a file is cut, stretched or padded (``fit``) to the aspect of the request, and
    scaled to its size; an array has that size. :meth:`Inputs.check` judges them.
    """
    return Inputs(
        noise=None if noise is None else _array(noise, read_noise),
        prompt_embeds=None if prompt_embeds is None else _embeds(prompt_embeds, request),
        image=None
        if image is None
        else _array(image, lambda path: _read_image(path, request, fit)),
    )


def _array(given: Array | PathLike, read: Callable[[Path], Array]) -> Array:
    if isinstance(given, str | os.PathLike):
        return read(Path(given))
    return _contiguous(given)


def _contiguous(given: object) -> Array:
    try:
        return np.ascontiguousarray(given)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"A {type(given).__name__} is no array: {error}.", expected="numbers in rows."
        ) from error


def _embeds(given: Mapping[str, Array] | PathLike, request: Request) -> Embeds:
    if isinstance(given, str | os.PathLike):
        return read_prompt_embeds(Path(given), guided=request.guided)
    if not isinstance(given, Mapping):
        raise RequestError(
            f"prompt_embeds is of type {type(given).__name__}.",
            expected="arrays by name, or the path of an .npz file.",
        )
    arrays = {name: _contiguous(array) for name, array in given.items()}
    return _named_embeds(arrays, "prompt_embeds", guided=request.guided)


def _read_image(path: Path, request: Request, fit: Fit) -> Array:
    from sana_rt.runtime import images  # noqa: PLC0415 (loads FFmpeg)

    return images.read_image(path, request.height, request.width, fit)


def read_noise(path: Path) -> NDArray[np.float32]:
    """Noise from a ``.npy`` file; :meth:`Inputs.check` judges it."""
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise RequestError(f"{path} is an archive of arrays.", expected="one array (.npy).")
    return array


def read_prompt_embeds(path: Path, *, guided: bool) -> Embeds:
    """Prompt embeddings from a ``.npz`` file with the names of diffusers' arguments.

    The negative prompt's are read only if ``guided``. Masks may have any integer dtype or bool.
    """
    arrays = _load(path)
    return _named_embeds({} if isinstance(arrays, np.ndarray) else arrays, path, guided=guided)


def _named_embeds(arrays: Mapping[str, Array], where: object, *, guided: bool) -> Embeds:
    pairs = (_NEGATIVE, _POSITIVE) if guided else (_POSITIVE,)
    wanted = {name for pair in pairs for name in pair}
    if not wanted <= set(arrays) <= {*_POSITIVE, *_NEGATIVE}:
        raise RequestError(
            f"{where} holds {sorted(arrays) or 'one array without a name'}.",
            expected=f"arrays (in a file, an .npz) named {sorted(wanted)}.",
        )
    return tuple(PromptEmbeds(arrays[embeds], _integers(arrays[mask])) for embeds, mask in pairs)


def _integers(mask: Array) -> Array:
    return mask.astype(np.int64) if mask.dtype.kind in "biu" else mask


def _load(path: Path) -> Array | Mapping[str, Array]:
    """An array, or the arrays of an archive by name."""
    try:
        if not is_archive(path):
            return _values(read_npy(path))
        with ArrayArchive(path) as archive:
            return {name: _values(archive[name]) for name in archive}
    except DamagedArrayError as error:
        raise RequestError(
            f"{path} cannot be read: {error}.", expected="a file written by numpy.save(z)."
        ) from error


def _values(stored: StoredArray) -> Array:
    return np.frombuffer(stored.data, stored.dtype).reshape(stored.shape)


def _check(what: str, array: Array, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise RequestError(
            f"The {what} has dtype {array.dtype} and shape {array.shape}.",
            expected=f"dtype {dtype} and shape {shape}.",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(np.size(array) - np.isfinite(array).sum())
        raise RequestError(f"The {what} has {count:,} values that are NaN or infinite.")
