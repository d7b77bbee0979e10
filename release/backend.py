"""setuptools as the build backend, whose wheels carry the bill of materials (PEP 770)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401 - the rest of the backend
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

Settings = dict[str, Any] | None

_BILL: Final = Path(__file__).with_name("sana-rt.cdx.json")


def prepare_metadata_for_build_wheel(metadata_directory: str, config: Settings = None) -> str:
    """The wheel's .dist-info, with the bill in its folder sboms."""
    name = build_meta.prepare_metadata_for_build_wheel(metadata_directory, config)
    bills = Path(metadata_directory) / name / "sboms"
    bills.mkdir()
    shutil.copyfile(_BILL, bills / _BILL.name)
    return str(name)


def build_wheel(
    wheel_directory: str, config: Settings = None, metadata_directory: str | None = None
) -> str:
    """The wheel around the .dist-info that was prepared, or that is prepared now."""
    with tempfile.TemporaryDirectory() as temporary:
        if metadata_directory is None:
            metadata_directory = str(
                Path(temporary) / prepare_metadata_for_build_wheel(temporary, config)
            )
        return str(build_meta.build_wheel(wheel_directory, config, metadata_directory))


prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
build_editable = build_meta.build_editable
