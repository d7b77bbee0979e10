"""``sana-rt verify``: a bundle against its hashes and its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.progress import track

from sana_rt.bundle import Bundle
from sana_rt.cli import output, verify_backend
from sana_rt.cli.command import Command
from sana_rt.cli.lora_option import Chosen, lora_option
from sana_rt.cli.printable import printable
from sana_rt.errors import UsageError, VerificationError
from sana_rt.manifest import Source

if TYPE_CHECKING:
    from sana_rt.export.verify import Finding

_PATH: Final = click.Path(path_type=Path, exists=True)


@click.command(cls=Command, epilog="Example: sana-rt verify out/bundle out/checkpoint")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=_PATH, required=False)
@click.option(
    "--vae", type=_PATH, help="Autoencoder of the checkpoint, if `sana-rt export` was given --vae."
)
@click.option(
    "--text-encoder",
    type=_PATH,
    help="Text encoder of the checkpoint, if `sana-rt export` was given --text-encoder.",
)
@lora_option
@click.option(
    "--backend",
    help="Instead of with CHECKPOINT, compare what this backend makes of every graph or plan with "
    "the CPU: tensorrt, onnxruntime-cuda, ....",
)
@click.option(
    "--variant", help="With --backend, the variant to compare.  [default: all it can play]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(
    bundle: Path,
    checkpoint: Path | None,
    *,
    vae: Path | None,
    text_encoder: Path | None,
    loras: tuple[Chosen, ...],
    backend: str | None,
    variant: str | None,
    as_json: bool,
) -> None:
    """Compare every graph of BUNDLE with the module of CHECKPOINT, and every file with its hash.

    CHECKPOINT is what BUNDLE was exported from; the first line says whether it is. With --lora the
    variants that have just these LoRAs are compared, without it those that have none. An error is
    the largest absolute difference between the outputs of ONNX Runtime and of the PyTorch module,
    divided by the largest value. What cannot be compared here (quantized graphs, plans, parts that
    are not given) is listed as not checked. Exits with 1 if any check fails, or if CHECKPOINT is
    another. `sana-rt inspect` checks the files alone, without a checkpoint or PyTorch, and shows
    the errors that were measured at export.

    With --backend, every graph or plan is run on that backend instead, and compared with the
    CPU's graph on the same inputs: a compiler can be wrong, and this finds it before a video does.
    """
    if backend is not None:
        verify_backend.verify(bundle, backend, variant, as_json=as_json)
        return
    if checkpoint is None:
        raise UsageError(
            "There is nothing to compare the bundle with.", expected="CHECKPOINT, or --backend."
        )
    from sana_rt.export import lora
    from sana_rt.export.checkpoint import Parts, open_checkpoint
    from sana_rt.export.verify import is_of, verify_bundle

    opened = Bundle.read(bundle)
    parts = Parts(vae, text_encoder)
    source = open_checkpoint(checkpoint, preset=opened.manifest.model, parts=parts)
    if loras:
        source = lora.merge(source, loras)
    same = is_of(opened, source)
    if same is False:
        raise _another(opened, checkpoint, source.source)
    if not as_json:
        click.echo(printable(_introduction(opened, checkpoint, source.source, same=same)))
    steps = verify_bundle(opened, source)
    findings = list(track(steps, "Verifying", console=output.stderr(), transient=True))
    if as_json:
        report = {"path": str(checkpoint), "sha256": source.source.base, "same": same}
        output.json({"checkpoint": report, "findings": [_facts(each) for each in findings]})
    else:
        _show(findings)
    failed = [each for each in findings if each.outcome == "failed"]
    if failed:
        raise VerificationError(
            f"{len(failed)} of {len(findings)} checks failed: "
            f"{'; '.join(f'{each.what}: {each.message}' for each in failed)}.",
            expected="files that match their hashes, and errors within the tolerance.",
            remedy="copy the bundle again, or export it again.",
        )


def _another(bundle: Bundle, path: Path, given: Source) -> VerificationError:
    return VerificationError(
        f"{path} is not the checkpoint of {bundle.root}: the SHA-256 of its weights is "
        f"{given.base}.",
        expected=f"{_sources(bundle)}.",
        remedy="give the checkpoint that was exported, with --vae and --text-encoder if "
        "`sana-rt export` was given them.",
    )


def _introduction(bundle: Bundle, path: Path, given: Source, *, same: bool | None) -> str:
    if same:
        return f"{path} is the checkpoint of {bundle.root}: SHA-256 {given.base}."
    return (
        f"{path} lacks a part that {bundle.root} has, so its hash does not tell whether it is "
        f"the checkpoint: {_sources(bundle)}."
    )


def _sources(bundle: Bundle) -> str:
    sources = [variant.source for variant in bundle.manifest.variants.values()]
    found = {each.base: each.checkpoint for each in reversed(sources)}
    return " and ".join(f"{name}, SHA-256 {base}" for base, name in reversed(found.items()))


def _facts(finding: Finding) -> dict[str, Any]:
    found = finding.verification
    return {
        "what": finding.what,
        "variant": finding.variant,
        "graph": finding.graph,
        "outcome": finding.outcome,
        "message": finding.message,
        "max_error": found.max_error if found else None,
        "tolerance": found.tolerance if found else None,
        "reference": found.reference if found else None,
    }


def _show(findings: list[Finding]) -> None:
    output.table(
        "Verification",
        ("what", "", "error>", "tolerance>", "how"),
        [
            (
                each.what,
                "FAILED" if each.outcome == "failed" else each.outcome,
                f"{each.verification.max_error:.1e}" if each.verification else "",
                f"{each.verification.tolerance:.1e}" if each.verification else "",
                each.message,
            )
            for each in findings
        ],
    )
