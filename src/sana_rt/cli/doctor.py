"""``sana-rt doctor``: what works on this machine and what to install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from sana_rt import __version__, machine
from sana_rt.cli import COMMANDS, bundle_offers, import_check, output, progress
from sana_rt.cli.bundle_offers import Playable
from sana_rt.cli.command import Command
from sana_rt.engines import cards
from sana_rt.engines.trt_api import FLAVOURS
from sana_rt.progress import ReportProgress, silent

_FORMATS: Final = {"bfloat16": "BF16", "float8_e4m3fn": "FP8", "float4_e2m1": "NVFP4"}
_SHOWN_EXTRAS: Final = ("cpu", "rtx", "plugin", "build", "bench")
_SUBSTITUTES: Final = {"onnxruntime": ("onnxruntime-gpu",)}  # the same module with CUDA
_REQUIREMENT: Final = re.compile(
    r"^(?P<name>[\w.-]+)(?P<range>[^;]*)(?:;.*extra == .(?P<extra>\w+))?"
)
#: The module of a package, where it is not called as the package is.
_MODULES: Final = {
    "cuda-python": "cuda.bindings.driver",
    "nvidia-ml-py": "pynvml",
    "nvidia-modelopt": "modelopt.torch.quantization",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13": "onnxruntime_ep_nv_tensorrt_rtx",
    "scikit-image": "skimage",
    "tensorrt-rtx-cu13": FLAVOURS["rtx"].module,
}
_RELEASE: Final = re.compile(r"\b\d{3}\.\d+(?:\.\d+)?\b")  # in the first line of the file
_NVIDIA_VERSION: Final = Path("/proc/driver/nvidia/version")


class Record(msgspec.Struct, frozen=True):
    """Base of what the report is made of."""


class Machine(Record, frozen=True):
    """The computer and the interpreter."""

    sana_rt: str
    python: str
    system: str
    processor: str
    cores: int
    memory_bytes: int | None


class Package(Record, frozen=True):
    """A package that an extra asks for; ``installed`` is its version, or None.

    ``broken`` says why it cannot be imported, "" if it can or is not there.
    """

    name: str
    wanted: str
    installed: str | None
    broken: str


class Extra(Record, frozen=True):
    """An extra, its packages, and the command that installs it (None: all are there)."""

    name: str
    packages: tuple[Package, ...]
    install: str | None

    @property
    def missing(self) -> str:
        """What is in the way of using it, "" if nothing is."""
        broken = (f"broken: {each.name}: {each.broken}" for each in self.packages if each.broken)
        return self.install or next(broken, "")


class GPU(Record, frozen=True):
    """An NVIDIA GPU and the number formats that plans for it can use."""

    name: str
    compute_capability: str
    memory_bytes: int
    formats: tuple[str, ...]


class Nvidia(Record, frozen=True):
    """What the NVIDIA driver reports; ``note`` says why there is nothing."""

    driver: str | None
    gpus: tuple[GPU, ...]
    note: str


class Ability(Record, frozen=True):
    """A command, or what else one does, and what is in the way ("" if nothing is)."""

    what: str
    missing: str


class DoctorReport(Record, frozen=True):
    """All that ``sana-rt doctor`` says."""

    machine: Machine
    extras: tuple[Extra, ...]
    onnxruntime_providers: tuple[str, ...]
    nvidia: Nvidia
    abilities: tuple[Ability, ...]
    bundle: tuple[Playable, ...] | None = None


def examine(report: ReportProgress = silent) -> DoctorReport:
    """Look at this machine; packages are imported in another process."""
    found = {name: _requirements(name) for name in _SHOWN_EXTRAS}
    present = dict.fromkeys(
        _module(name) for each in found.values() for name, _ in each if _installed(name)
    )
    broken = import_check.broken(list(present), report=report)
    extras = tuple(_extra(name, wanted, broken) for name, wanted in found.items())
    providers = () if "onnxruntime" in broken else _providers()
    nvidia = _nvidia(broken.get(_module("cuda-python"), ""))
    return DoctorReport(
        _machine(), extras, providers, nvidia, _abilities(extras, providers, nvidia)
    )


def formats(major: int, minor: int) -> tuple[str, ...]:
    """The number formats that cards of a compute capability can play a bundle in.

    Where no plans are built for it, ONNX Runtime's CUDA provider runs BF16, from 8.0 on.
    """
    target = cards.target_of(f"{major}.{minor}")
    if target is not None:
        return tuple(_FORMATS[dtype] for dtype in target.dtypes)
    return ("BF16",) if major >= 8 else ("FP32",)


def _machine() -> Machine:
    return Machine(
        sana_rt=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        processor=machine.processor(),
        cores=machine.usable_cpus(),
        memory_bytes=machine.memory_bytes(),
    )


def _requirements(extra: str) -> list[tuple[str, str]]:
    """The packages of an extra, and their ranges."""
    return [
        (match["name"], match["range"].strip())
        for line in importlib.metadata.requires("sana-rt") or ()
        if (match := _REQUIREMENT.match(line)) and match["extra"] == extra
    ]


def _module(package: str) -> str:
    return _MODULES.get(package, package.replace("-", "_"))


def _extra(name: str, wanted: list[tuple[str, str]], broken: Mapping[str, str]) -> Extra:
    packages = tuple(
        Package(package, versions, _installed(package), broken.get(_module(package), ""))
        for package, versions in wanted
    )
    complete = all(package.installed for package in packages)
    return Extra(name, packages, None if complete else f'pip install "sana-rt[{name}]"')


def _installed(name: str) -> str | None:
    for candidate in (name, *_SUBSTITUTES.get(name, ())):
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _providers() -> tuple[str, ...]:
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _nvidia(broken: str) -> Nvidia:
    if broken:
        return Nvidia(None, (), f"cuda-python is broken: {broken}")
    if not _has_cuda_bindings():
        loaded = _NVIDIA_VERSION.exists()
        if platform.system() == "Linux" and not loaded:
            return Nvidia(None, (), "no NVIDIA driver is loaded")
        driver = _NVIDIA_VERSION.read_text().splitlines()[0] if loaded else None
        return Nvidia(driver, (), 'pip install "sana-rt[rtx]" to see its GPUs')
    from cuda.bindings import driver as cuda

    try:
        return _ask(cuda)
    except RuntimeError as error:  # the driver's library is not there, or refuses
        return Nvidia(None, (), f"the NVIDIA driver does not answer: {error}")


def _has_cuda_bindings() -> bool:
    return bool(importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings"))


def _ask(cuda: Any) -> Nvidia:
    _call(cuda.cuInit, 0)
    version = _call(cuda.cuDriverGetVersion)
    gpus = tuple(_gpu(cuda, index) for index in range(_call(cuda.cuDeviceGetCount)))
    release = _RELEASE.search(_NVIDIA_VERSION.read_text()) if _NVIDIA_VERSION.exists() else None
    cuda_version = f"CUDA {version // 1000}.{version % 1000 // 10}"
    return Nvidia(f"{release[0]}, {cuda_version}" if release else cuda_version, gpus, "")


def _gpu(cuda: Any, index: int) -> GPU:
    device = _call(cuda.cuDeviceGet, index)
    attribute = cuda.CUdevice_attribute
    major, minor = (
        _call(cuda.cuDeviceGetAttribute, which, device)
        for which in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    name = _call(cuda.cuDeviceGetName, 256, device).split(b"\0")[0].decode()
    memory = _call(cuda.cuDeviceTotalMem, device)
    return GPU(name, f"{major}.{minor}", memory, formats(major, minor))


def _call(function: Any, *arguments: Any) -> Any:
    """Call the driver; its functions return the status first."""
    status, *results = function(*arguments)
    if status != 0:
        raise RuntimeError(f"{function.__name__} answered {status.name}")
    return results[0] if results else None


def _abilities(
    extras: tuple[Extra, ...], providers: tuple[str, ...], nvidia: Nvidia
) -> tuple[Ability, ...]:
    missing = {extra.name: extra.missing for extra in extras}
    gpu = "" if nvidia.gpus else "an NVIDIA GPU and its driver"
    cuda = "" if "CUDAExecutionProvider" in providers else "pip install onnxruntime-gpu"
    return (
        *(Ability(name, _in_the_way(entry.extra, missing)) for name, entry in COMMANDS.items()),
        Ability(
            "generate, stream on an NVIDIA GPU through ONNX Runtime", gpu or missing["cpu"] or cuda
        ),
    )


def _in_the_way(extras: str | None, missing: Mapping[str, str]) -> str:
    """What a command lacks that needs packages of ``extras``, which are divided by commas."""
    found = [missing[name] for name in extras.split(",") if missing[name]] if extras else []
    broken = [each for each in found if each.startswith("broken")]
    if broken or not found:
        return "; ".join(broken)
    return f'pip install "sana-rt[{extras}]"'


@click.command(cls=Command, epilog="Example: sana-rt doctor out/bundle")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(bundle: Path | None, *, as_json: bool) -> None:
    """Show what works on this machine and what to install.

    Lists the interpreter, the processor, the packages of each extra, ONNX Runtime's providers,
    the NVIDIA GPUs with the number formats that they support, and the commands. Every package is
    imported, in a process of its own: one that is installed and cannot be is "broken". Exits with
    1 if one is broken, and with 0 otherwise, also if packages are missing. Changes nothing.

    With BUNDLE it also says which backend would play which of its variants here, and why not the
    others: a backend is opened, and plans are looked at, but nothing is loaded.
    """
    with progress.shown("Importing packages") as shown:
        report = examine(shown)
    if bundle is not None:
        report = msgspec.structs.replace(report, bundle=bundle_offers.examine(bundle))
    if as_json:
        output.json(report)
    else:
        _show(report)
        if bundle is not None and report.bundle is not None:
            bundle_offers.show(bundle, report.bundle)
    if any(package.broken for extra in report.extras for package in extra.packages):
        raise click.exceptions.Exit(1)


def _show(report: DoctorReport) -> None:
    this = report.machine
    memory = "unknown" if this.memory_bytes is None else output.size(this.memory_bytes)
    output.table(
        "This machine",
        ("", ""),
        (
            ("sana-rt", this.sana_rt),
            ("Python", this.python),
            ("system", this.system),
            ("processor", f"{this.processor}, {this.cores} usable cores"),
            ("memory", memory),
            ("ONNX Runtime", ", ".join(report.onnxruntime_providers) or "not installed"),
            ("NVIDIA driver", report.nvidia.driver or "none"),
        ),
    )
    output.table("Packages", ("extra", "package", "installed", "wanted"), _package_rows(report))
    for extra in report.extras:
        if extra.install:
            click.echo(f"  for all of {extra.name}: {extra.install}")
    output.table(
        "NVIDIA GPUs",
        ("name", "compute capability", "memory", "formats"),
        [
            (gpu.name, gpu.compute_capability, output.size(gpu.memory_bytes), " ".join(gpu.formats))
            for gpu in report.nvidia.gpus
        ]
        or [(f"none: {report.nvidia.note}", "", "", "")],
    )
    output.table(
        "What works here",
        ("", "", "to make it work"),
        [
            ("no" if ability.missing else "yes", ability.what, ability.missing)
            for ability in report.abilities
        ],
    )


def _package_rows(report: DoctorReport) -> list[tuple[str, str, str, str]]:
    return [
        (extra.name, package.name, _state(package), package.wanted)
        for extra in report.extras
        for package in extra.packages
    ]


def _state(package: Package) -> str:
    version = package.installed or "missing"
    return f"{version}, broken: {package.broken}" if package.broken else version
