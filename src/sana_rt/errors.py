"""Every error a user can meet: what happened, what was expected, what to do."""

from __future__ import annotations

import itertools
from collections.abc import Collection


class SanaRTError(Exception):
    """Base of all errors raised on purpose.

    The message is one to three sentences. Each part is kept as an attribute so that a
    program can show them apart.
    """

    def __init__(self, happened: str, *, expected: str = "", remedy: str = "") -> None:
        self.happened = happened
        self.expected = expected
        self.remedy = remedy
        parts = [happened]
        if expected:
            parts.append(f"Expected: {expected}")
        if remedy:
            parts.append(f"To fix: {remedy}")
        super().__init__("\n".join(parts))


def some(names: Collection[str], most: int = 10) -> str:
    """Names as messages list them: ``a, b, ... and 12 more``."""
    shown = ", ".join(itertools.islice(names, most))
    return shown if len(names) <= most else f"{shown}, ... and {len(names) - most:,} more"


class UsageError(SanaRTError):
    """An option or combination of options that cannot be honoured."""


class MissingDependencyError(SanaRTError):
    """A package that an optional extra installs is not importable."""


class StorageError(SanaRTError):
    """A file could not be read or written."""


class DiskFullError(StorageError):
    """The file system has no room left; nothing half-written stays under its final name."""


class LockedError(StorageError):
    """Another process is writing the same bundle."""


class CheckpointError(SanaRTError):
    """A checkpoint that cannot be used as given."""


class CheckpointFormatError(CheckpointError):
    """The folder or file is none of the known checkpoint layouts, or is damaged."""


class CheckpointKeysError(CheckpointError):
    """Missing, unexpected or mis-shaped tensors; all of them are counted, and some named."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that asks for more than plain tensors; it is not executed."""


class FetchError(SanaRTError):
    """A checkpoint could not be downloaded."""


class ExportError(SanaRTError):
    """A graph could not be exported."""


class VerificationError(SanaRTError):
    """A graph's output differs from its module's, or a file from its hash."""


class ManifestError(SanaRTError):
    """Base of all errors about ``manifest.json``."""


class ManifestMissingError(ManifestError):
    """The directory has no manifest: it is no bundle, or its writing was interrupted."""


class ManifestSyntaxError(ManifestError):
    """Not JSON, or a value of the wrong type."""


class ManifestVersionError(ManifestError):
    """Another format, or a newer version of this one."""


class ManifestFieldError(ManifestError):
    """An unknown or a missing field."""


class ManifestValueError(ManifestError):
    """A value of the right type outside the range that its field allows."""


class ManifestDuplicateError(ManifestError):
    """A key, a path or a tensor that is listed twice."""


class ManifestLimitError(ManifestError):
    """A named limit of the format is exceeded."""


class ManifestPathError(ManifestError):
    """A path that is absolute, leaves the bundle, or is not in normal form."""


class ManifestReferenceError(ManifestError):
    """A graph or plan names a file, graph or variant that the manifest does not list."""


class ManifestShapeError(ManifestError):
    """A tensor that no graph can have, or that this graph of this model has not."""


class BundleFileError(ManifestError):
    """A listed file is absent, is not the listed one, or is not what the manifest says of it."""


class QuantizationError(SanaRTError):
    """Base of all errors about quantization; a tensor that a format cannot hold, layer named."""


class RecipeError(QuantizationError):
    """A recipe that does not parse, or whose rules do not fit the model."""


class CalibrationError(QuantizationError):
    """A calibration table that is damaged, incomplete or of another checkpoint."""


class EngineError(SanaRTError):
    """Base of all errors about building plans and about plans that cannot be used."""


class BuildError(EngineError):
    """TensorRT refused to build a plan; its own messages are quoted."""


class UnsupportedNodeError(BuildError):
    """A node of a graph that TensorRT cannot import; names the node and the module it is from."""


class TargetError(EngineError):
    """A graph needs what the target card does not have, or a flavour cannot build for it."""


class ProfileError(EngineError):
    """Dimensions outside of what a plan accepts; both ranges are shown."""


class PlanVersionError(EngineError):
    """A plan that another version of TensorRT built; both versions are shown."""


class PlanCardError(EngineError):
    """A plan that was built for another kind of card than the one that is here."""


class PlanDriverError(EngineError):
    """A plan that needs a newer NVIDIA driver or CUDA runtime than the one that is here."""


class PlanFormatError(EngineError):
    """A file that is not a plan, or a plan of another graph than the manifest says."""


class PlanTableError(EngineError):
    """A build log whose compiled layer table does not parse; nothing of it is dropped."""


class TokenizerError(SanaRTError):
    """A tokenizer that is damaged or not the one the text encoder was trained with."""


class RequestError(SanaRTError):
    """A generation request the model cannot serve (frame count, size, prompt, noise)."""


class StateError(SanaRTError):
    """The state of a stream that is damaged, not whole, or of another model or size."""


class BackendError(SanaRTError):
    """No backend can play the variant; every refusal is listed with its reason."""


class BindingError(SanaRTError):
    """A buffer that does not fit the graph input or output it is bound to."""


class CanceledError(SanaRTError):
    """The caller ended a clip while it was being made."""


class DeviceMemoryError(SanaRTError):
    """The plan of device memory does not fit the device."""


class DeviceLostError(SanaRTError):
    """The device failed or does not answer; nothing more can be played in this process."""


class VideoError(SanaRTError):
    """FFmpeg could not encode a video; its own message is quoted."""


class SystemMemoryError(SanaRTError):
    """The operating system refused memory."""


class NonFiniteError(SanaRTError):
    """A graph wrote NaN or infinity; names the graph, the step and the output."""


class BenchmarkError(SanaRTError):
    """A side of a benchmark failed in its process, or took longer than its limit."""


class ComparisonError(SanaRTError):
    """Two measurements that are not of equal work; names the fields, with both values."""
