"""``sana-rt verify``: a bundle against its hashes and its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.progress import track

from sana_rt.bundle import Bundle
from sana_rt.cli import output
from sana_rt.cli.command import Command
from sana_rt.errors import VerificationError

if TYPE_CHECKING:
    from sana_rt.export.verify import Finding

_PATH: Final = click.Path(path_type=Path, exists=True)


@click.command(cls=Command, epilog="Example: sana-rt verify out/bundle out/checkpoint")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=_PATH)
@click.option(
    "--vae", type=_PATH, help="Autoencoder of the checkpoint, if `sana-rt export` was given --vae."
)
@click.option(
    "--text-encoder",
    type=_PATH,
    help="Text encoder of the checkpoint, if `sana-rt export` was given --text-encoder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(
    bundle: Path,
    checkpoint: Path,
    *,
    vae: Path | None,
    text_encoder: Path | None,
    as_json: bool,
) -> None:
    """Compare every graph of BUNDLE with the module of CHECKPOINT, and every file with its hash.

    CHECKPOINT is what BUNDLE was exported from. An error is the largest absolute difference
    between the outputs of ONNX Runtime and of the PyTorch module, divided by the largest value.
    Exits with 1 if any check fails. `sana-rt inspect` checks the files alone, without a checkpoint
    or PyTorch, and shows the errors that were measured at export.
    """
    from sana_rt.export.checkpoint import Parts, open_checkpoint
    from sana_rt.export.verify import verify_bundle

    opened = Bundle.read(bundle)
    parts = Parts(vae, text_encoder)
    source = open_checkpoint(checkpoint, preset=opened.manifest.model, parts=parts)
    steps = verify_bundle(opened, source)
    findings = list(track(steps, "Verifying", console=output.stderr(), transient=True))
    if as_json:
        output.json([_facts(each) for each in findings])
    else:
        _show(findings)
    failed = [each for each in findings if not each.passed]
    if failed:
        raise VerificationError(
            f"{len(failed)} of {len(findings)} checks failed: "
            f"{'; '.join(f'{_what(each)}: {each.message}' for each in failed)}.",
            expected="files that match their hashes, and errors within the tolerance, with the "
            f"checkpoint that the bundle is of: {_sources(opened)}. Given was "
            f"{source.name}, SHA-256 {source.source().sha256[:12]}.",
            remedy="copy the bundle again, or export it again.",
        )


def _sources(bundle: Bundle) -> str:
    found = dict.fromkeys(each.source for each in bundle.manifest.variants.values())
    return " and ".join(f"{each.checkpoint}, SHA-256 {each.sha256[:12]}" for each in found)


def _what(finding: Finding) -> str:
    return "/".join(name for name in (finding.variant, finding.graph) if name) or "files"


def _facts(finding: Finding) -> dict[str, Any]:
    found = finding.verification
    return {
        "variant": finding.variant or None,
        "graph": finding.graph,
        "passed": finding.passed,
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
                _what(each),
                "ok" if each.passed else "FAILED",
                f"{each.verification.max_error:.1e}" if each.verification else "",
                f"{each.verification.tolerance:.1e}" if each.verification else "",
                each.message,
            )
            for each in findings
        ],
    )
