"""``sana-rt verify --backend``: what a backend makes of a bundle, against the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_rt.bundle import Bundle
from sana_rt.cli import output
from sana_rt.errors import VerificationError

if TYPE_CHECKING:
    from sana_rt.runtime.comparison import Compared


def verify(root: Path, backend: str, variant: str | None, *, as_json: bool) -> None:
    """Compare ``variant``, or all that ``backend`` can play, and print what was found.

    Raises:
        BackendError: the backend cannot play it.
        VerificationError: a graph is further off than it may be, or there is no reference.
    """
    bundle = Bundle.open(root)
    found = []
    with output.stderr().status("Starting") as status:
        for each in _compared(bundle, backend, variant):
            found.append(each)
            status.update(f"Compared {each.variant}/{each.graph}")
    if as_json:
        output.json([_facts(each) for each in found])
    else:
        _show(backend, found)
    wrong = [each for each in found if not each.passed]
    if wrong:
        raise VerificationError(
            f"{len(wrong)} of {len(found)} comparisons with the CPU failed: "
            f"{'; '.join(map(_failure, wrong))}.",
            expected="errors within the tolerance (docs/numerics.md derives it).",
            remedy="do not play this variant with this backend on this card; build its plans again "
            "with another version of TensorRT, or update the driver, and report it.",
        )


def _compared(bundle: Bundle, backend: str, variant: str | None) -> Iterator[Compared]:
    from sana_rt.runtime import backends, comparison
    from sana_rt.runtime.backends import onnxruntime
    from sana_rt.runtime.backends.survey import offers

    variants = bundle.manifest.with_current_plans()
    names: tuple[str | None, ...] = (variant,)
    if variant is not None:
        bundle.manifest.variant(variant)
    elif backend in backends.BACKENDS:
        names = offers(backend, bundle).playable or names
    with contextlib.ExitStack() as opened:
        cpu = onnxruntime.cpu()
        opened.callback(cpu.close)
        for name in names:
            chosen, played = backends.select(backend, variants, name)
            with contextlib.closing(chosen):
                reference = comparison.reference_of(bundle.manifest, played)
                yield from comparison.compare(bundle, played, chosen, reference, cpu)


def _facts(found: Compared) -> dict[str, Any]:
    return {
        "variant": found.variant,
        "graph": found.graph,
        "reference": found.reference,
        "dims": dict(found.dims),
        "passed": found.passed,
        "output": found.output,
        "error": found.error,
        "tolerance": found.tolerance,
    }


def _failure(found: Compared) -> str:
    return (
        f"{found.variant}/{found.graph} differs in {found.output!r} by {found.error:.2g} of the "
        f"largest value, where {found.tolerance:.2g} is allowed"
    )


def _show(backend: str, found: list[Compared]) -> None:
    output.table(
        f"{backend} against the CPU",
        ("what", "", "worst output", "error>", "tolerance>", "against"),
        [
            (
                f"{each.variant}/{each.graph}",
                "ok" if each.passed else "FAILED",
                each.output,
                f"{each.error:.1e}",
                f"{each.tolerance:.1e}",
                each.reference,
            )
            for each in found
        ],
    )
