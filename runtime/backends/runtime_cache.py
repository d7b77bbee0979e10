"""Kernels that were compiled for this card, in a file, from one start to the next."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any, Final

from sana_rt.errors import StorageError
from sana_rt.files import write_bytes
from sana_rt.runtime.backends.cuda_device import Card
from sana_rt.runtime.backends.trt_api import Library

_LOGGER: Final = logging.getLogger("sana_rt")
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9.]+")


class RuntimeCache:
    """One for all engines of a process, shared with TensorRT, which adds what it compiles.

    TensorRT looks itself whether what is in the file fits this machine, and takes nothing of
    it otherwise.
    """

    def __init__(self, path: Path, card: Card) -> None:
        self.path = path
        self.is_hit = False
        self._card = card
        self._cache: Any = None
        self._saved = b""

    def attach(self, config: Any) -> None:
        """Let the contexts of a runtime configuration use it; the first call reads the file."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file, if there is anything new; failing is not worth an error."""
        if self._cache is None:
            return
        data = bytes(self._cache.serialize())
        if data == self._saved:
            return
        try:
            write_bytes(self.path, data)
        except StorageError as error:
            _LOGGER.warning("Compiled kernels are not kept for the next start: %s", error)
        else:
            self._saved = data

    def close(self) -> None:
        """Let go of what is shared with TensorRT, after the contexts that use it are gone."""
        self._cache = None

    def _load(self) -> None:
        found = self.path.read_bytes() if self.path.is_file() else b""
        self.is_hit = bool(found) and bool(self._cache.deserialize(found))
        if self.is_hit:
            self._saved = found
            _LOGGER.info("Compiled kernels for %s come from %s.", self._card.name, self.path)
        else:
            why = "does not fit this machine any more" if found else "is not there yet"
            _LOGGER.info(
                "TensorRT compiles kernels for %s, which can take a minute: %s %s. "
                "The next start will find it.", self._card.name, self.path, why,
            )  # fmt: skip


def path(card: Card, library: Library) -> Path:
    """The file for what a cache depends on: card, driver, library and its version."""
    return folder_of(library.flavour, library.version, card)


def folder_of(compiler: str, version: str, card: Card) -> Path:
    """Where what a ``compiler`` made for a card is kept."""
    parts = (compiler, version, card.name, card.compute_capability, card.driver)
    return _folder() / "-".join(_NOT_IN_NAMES.sub("_", part) for part in parts)


def _folder() -> Path:
    """The user's folder for what can be made again, as the system names it."""
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "sana-rt" / "kernels"
