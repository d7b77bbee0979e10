"""A plan's file, read as a whole: a plan is a program, so nothing of it runs unchecked."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any, Final

from sana_rt.errors import (
    BackendError,
    BundleFileError,
    DeviceMemoryError,
    PlanCardError,
    PlanDriverError,
    PlanFormatError,
    PlanVersionError,
    SanaRTError,
)
from sana_rt.files import storage_errors
from sana_rt.manifest import Plan
from sana_rt.runtime.backends.base import Artifact
from sana_rt.runtime.backends.cuda_device import Card
from sana_rt.runtime.backends.trt_api import Library, Validity

_HEADER_BYTES: Final = 4096  # the header is 64 bytes in TensorRT-RTX 1.7


class SlowPlanWarning(UserWarning):
    """A plan that runs here, but was not built for this card."""


def read(artifact: Artifact) -> bytes:
    """The bytes of a plan, which are those that the manifest lists.

    Raises:
        BundleFileError: they are others.
        StorageError: the file cannot be read.
    """
    with storage_errors(artifact.path):
        plan = artifact.path.read_bytes()
    found = hashlib.sha256(plan).hexdigest()
    if found != artifact.sha256:
        raise BundleFileError(
            f"{artifact.path} has SHA-256 {found}.",
            expected=f"{artifact.sha256 or 'one'}, as the manifest lists it: a plan is a program, "
            "and only the listed one is loaded.",
            remedy="copy the bundle again, or build its plans again (sana-rt build).",
        )
    return plan


def read_header(artifact: Artifact) -> bytes:
    """The beginning of a plan, of which nothing is run; raises :class:`StorageError`."""
    with storage_errors(artifact.path), artifact.path.open("rb") as file:
        return file.read(_HEADER_BYTES)


def check(
    artifact: Artifact, entry: Plan, validity: Validity, library: Library, card: Card
) -> None:
    """Raise the first reason why a plan does not run on ``card``; warn if it runs slowly."""
    if not validity.runs:
        reasons = _reasons(artifact, entry, library, card)
        raise next(
            (error for name, error in reasons.items() if name in validity.reasons),
            BackendError(f"{library} refuses {artifact.path} and does not say why."),
        )
    if validity.is_slow:
        warnings.warn(
            SlowPlanWarning(
                f"The plan of {artifact.name} was built for {entry.compute_capability} and runs "
                f"more slowly than it could on {card.name} ({card.compute_capability}). "
                f"To fix: {rebuild(artifact)}"
            ),
            stacklevel=2,
        )


def check_names(artifact: Artifact, engine: Any) -> None:
    """Raise :class:`PlanFormatError` unless the plan has the inputs and outputs of its graph."""
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    wanted = {tensor.name for tensor in (*artifact.entry.inputs, *artifact.entry.outputs)}
    if names != wanted:
        raise PlanFormatError(
            f"{artifact.path} has the inputs and outputs {sorted(names)}.",
            expected=f"{sorted(wanted)}, as the manifest says.",
            remedy=rebuild(artifact),
        )


def rebuild(artifact: Artifact) -> str:
    """How to make a plan that runs here."""
    return f"build the plans again: sana-rt build BUNDLE --variant {artifact.variant} --target CARD"


def _reasons(
    artifact: Artifact, entry: Plan, library: Library, card: Card
) -> dict[str, SanaRTError]:
    """What each of TensorRT's reasons means, those first that the others follow from."""
    what, again = f"The plan of {artifact.name}", rebuild(artifact)
    return {
        "CUDA_ERROR": BackendError(
            f"{library} cannot use CUDA on this machine.",
            remedy="install NVIDIA's current driver; `sana-rt doctor` shows which is there.",
        ),
        "MALFORMED_ENGINE": PlanFormatError(f"{artifact.path} is not a plan.", remedy=again),
        "VERSION_MISMATCH": PlanVersionError(
            f"{what} was built by version {entry.flavour_version} of {entry.flavour!r}; version "
            f"{library.version} is running.",
            expected="the same version: plans are not portable between versions.",
            remedy=again,
        ),
        "UNSUPPORTED_CC": PlanCardError(
            f"{what} is for cards of compute capability {entry.compute_capability}; {card.name} "
            f"has {card.compute_capability}.",
            remedy=again,
        ),
        "OLD_CUDA_DRIVER": PlanDriverError(
            f"{what} needs a newer driver than this one, which is for CUDA {card.driver}.",
            remedy="install NVIDIA's current driver.",
        ),
        "OLD_CUDA_RUNTIME": PlanDriverError(
            f"{what} needs a newer CUDA than that of {library}.",
            remedy=library.capabilities.install,
        ),
        "INSUFFICIENT_GPU_MEMORY": DeviceMemoryError(
            f"{what} needs more memory than {card.name} has: {entry.weight_bytes:,} bytes for "
            f"weights and {entry.activation_bytes:,} for activations.",
            remedy="play a variant with smaller weights (`sana-rt inspect` lists them).",
        ),
    }
