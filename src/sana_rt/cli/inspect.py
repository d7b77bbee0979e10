"""``sana-rt inspect``: what is in a bundle."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from sana_rt import frame_sizes, geometry
from sana_rt import manifest as manifests
from sana_rt.bundle import Bundle
from sana_rt.cli import output, paths, progress
from sana_rt.cli.command import Command, overwrite_option
from sana_rt.cli.printable import printable
from sana_rt.engines.cards import CARDS
from sana_rt.errors import BundleFileError, some
from sana_rt.frame_sizes import Size
from sana_rt.manifest import Graph, Plan, Variant
from sana_rt.model_spec import ModelSpec

T = TypeVar("T")


def _print_schema(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        output.json(manifests.schema())
        ctx.exit()


@click.command(cls=Command, epilog="Example: sana-rt inspect out/bundle")
@click.argument("path", metavar="BUNDLE|CLIP", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and the checks as JSON.")
@click.option(
    "--all", "everything", is_flag=True, help="Show every graph, signature and plan as well."
)
@click.option(
    "--skip-hashes", is_flag=True, help="Check only the sizes of files, not their hashes."
)
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of manifest.json and exit.",
)
@click.option(
    "--plans", is_flag=True, help="Report on the plans (TensorRT engines) instead of the bundle."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Write a chart of the blocks' memory traffic, FLOPs and bounds on time to this .svg file; "
    "implies --plans.",
)
@click.option(
    "--device",
    help=f"Card to compute the plans' bounds for: {', '.join(CARDS)}.  "
    "[default: a card of each plan's target]",
)
@overwrite_option
def command(
    path: Path,
    *,
    as_json: bool,
    everything: bool,
    skip_hashes: bool,
    plans: bool,
    plot: Path | None,
    device: str | None,
    overwrite: bool,
) -> None:
    """Show the contents of BUNDLE, and whether its files match the hashes in its manifest.

    Shows the model, the sizes and lengths that it generates, and its variants with the worst
    error that was measured; --all, every graph. Exits with 1 if a file is damaged, a graph is not
    what the manifest says, or an error was above its tolerance. Plans are not run and graphs are
    not compared with a checkpoint; `sana-rt verify` does the latter.

    Of a CLIP, an mp4, GIF or PNG that `sana-rt generate` or `sana-rt stream` wrote, it shows what
    the clip was made of, and the command that makes it again.

    --plans shows the data types of the GEMMs, the memory traffic, the kernels with the highest
    bounds, the device memory that is needed, and lower bounds on the run time.
    """
    if path.is_file():
        _show_clip(path, as_json=as_json)
        return
    opened = Bundle.open(path)
    paths.check({"--plot": plot}, {}, overwrite=overwrite)
    if plans or plot:
        from sana_rt.cli import plans_view

        plans_view.show(opened, device=device, as_json=as_json, plot=plot)
        return
    damaged = None if skip_hashes else _damaged(opened)
    wrong = _wrong(opened)
    if as_json:
        output.json(_summary(opened, damaged, wrong))
    else:
        _show(opened, damaged, everything=everything)
    if damaged:
        raise BundleFileError(
            f"{len(damaged)} of {len(opened.manifest.files)} files are damaged: {some(damaged)}.",
            expected="the SHA-256 that the manifest lists.",
            remedy="copy the bundle again, or create it again with the command that wrote it.",
        )
    if wrong:
        raise BundleFileError(
            f"{len(wrong)} graphs are not what the manifest says: {'; '.join(wrong.values())}",
            expected="files that the manifest describes, and errors within their tolerance.",
            remedy="create the bundle again with the command that wrote it.",
        )


def _damaged(bundle: Bundle) -> list[str]:
    """The files that have not the listed hash."""
    files = progress.counted(bundle.manifest.files, "Reading files", len(bundle.manifest.files))
    return [file.path for file in files if _refused(bundle.check_hash, file)]


def _wrong(bundle: Bundle) -> dict[str, str]:
    """The graphs whose file or whose recorded error is not as it should be, and why."""
    found = {}
    for name, variant in bundle.manifest.variants.items():
        for graph_name, graph in variant.graphs.items():
            where = f"{name}/{graph_name}"
            if (reason := _refused(bundle.check_onnx, graph)) is not None:
                found[where] = reason
            elif graph.verification is not None and not graph.verification.passed:
                error, tolerance = graph.verification.max_error, graph.verification.tolerance
                found[where] = f"{where} has the error {error:.1e}, above {tolerance:.1e}."
    return found


def _refused(check: Callable[[T], None], what: T) -> str | None:
    """Why a check refuses; None if it does not."""
    try:
        check(what)
    except BundleFileError as error:
        return error.happened
    return None


def _summary(bundle: Bundle, damaged: list[str] | None, wrong: dict[str, str]) -> dict[str, Any]:
    return {
        "bundle": str(bundle.root),
        "bytes": sum(file.bytes for file in bundle.manifest.files),
        "hashes_checked": damaged is not None,
        "damaged": damaged or [],
        "wrong": wrong,
        "sizes": [
            {"width": size.width, "height": size.height, "aspects": names}
            for size, names in _sizes(bundle.manifest.model).items()
        ],
        "manifest": msgspec.to_builtins(bundle.manifest),
    }


def _show_clip(path: Path, *, as_json: bool) -> None:
    from sana_rt.runtime import clip_record

    record = clip_record.read(path)
    if as_json:
        output.json({"clip": str(path), "record": record, "command": record.command_line()})
        return
    rows = [
        ("path", str(path)),
        ("prompt", record.prompt),
        *((f"from {later.seconds:g} s", later.prompt) for later in record.prompts),
        ("model", f"{record.model}, variant {record.variant}"),
        *([("quantized", str(record.quantization))] if record.quantization else []),
        ("checkpoint", f"{record.source.checkpoint}, SHA-256 {record.source.sha256[:12]}"),
        ("options", ", ".join(f"{name} {value}" for name, value in _options(record.request))),
        *((option, f"SHA-256 {digest}") for option, digest in record.inputs.items()),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]
    output.table("Clip", ("", ""), rows)
    click.echo(f"\nMake it again:\n  {printable(record.command_line())}")


def _options(request: Mapping[str, object]) -> list[tuple[str, object]]:
    return [
        (name, value)
        for name, value in request.items()
        if name != "prompt" and value != "" and value is not None and value is not False
    ]


def _show(bundle: Bundle, damaged: list[str] | None, *, everything: bool) -> None:
    manifest = bundle.manifest
    total = sum(file.bytes for file in manifest.files)
    state = "hashes not checked" if damaged is None else f"{len(damaged) or 'none'} damaged"
    rows = [
        ("path", str(bundle.root)),
        ("written by", manifest.created_by),
        ("source", ", ".join(dict.fromkeys(map(_source, manifest.variants.values())))),
        ("files", f"{len(manifest.files)}, {output.size(total)}, {state}"),
        *_model_rows(manifest.model),
    ]
    output.table("Bundle", ("", ""), rows)
    output.table(
        "Variants",
        ("variant", "dtype", "size>", "worst error>", "tolerance>", "plans for"),
        [(name, *_variant_row(bundle, each)) for name, each in manifest.variants.items()],
    )
    loras = list(_lora_rows(manifest.variants))
    if loras:
        output.table("LoRAs merged into the weights", ("variant", "LoRA", "SHA-256"), loras)
    if everything:
        _show_sizes(manifest.model)
        for name, variant in manifest.variants.items():
            _show_variant(bundle, name, variant)
    else:
        output.note("\nGraphs, signatures and plans: sana-rt inspect --all")


def _sizes(model: ModelSpec) -> dict[Size, list[str]]:
    """The sizes that the model was trained at, each with the named aspects that become it."""
    return {size: frame_sizes.aspects_of(model, size) for size in frame_sizes.sizes(model)}


def _show_sizes(model: ModelSpec) -> None:
    output.table(
        f"Sizes of {model.name}",
        ("size", "width : height>", "--aspect"),
        [
            (str(size), f"{size.width / size.height:.2f}", ", ".join(names))
            for size, names in _sizes(model).items()
        ],
    )


def _lora_rows(variants: Mapping[str, Variant]) -> Iterator[tuple[str, str, str]]:
    for name, variant in variants.items():
        for index, lora in enumerate(variant.source.loras):
            yield "" if index else name, str(lora), lora.sha256[:12]


def _variant_row(bundle: Bundle, variant: Variant) -> tuple[str, ...]:
    graphs = _graph_row(bundle, variant, list(variant.graphs))
    return variant.dtype, *graphs, ", ".join(variant.plans) or "–"


def _source(variant: Variant) -> str:
    return f"{variant.source.checkpoint} ({variant.source.layout})"


def _model_rows(model: ModelSpec) -> list[tuple[str, str]]:
    dit, vae, sampling = model.transformer, model.vae, model.sampling
    kind = "block-causal" if dit.causal else "bidirectional"
    return [
        ("model", model.name),
        ("transformer", f"{dit.num_layers} blocks of width {dit.width}, {kind}"),
        (
            "autoencoder",
            f"{vae.kind}, {vae.latent_channels} channels, 1/{vae.temporal_stride} of the frames, "
            f"1/{vae.spatial_stride} of height and width",
        ),
        ("text encoder", f"Gemma-2, {model.text.num_layers} layers of {model.text.hidden_size}"),
        (
            "defaults",
            f"{sampling.num_frames} frames of {sampling.height} x {sampling.width} at "
            f"{sampling.fps} frames per second, {sampling.num_inference_steps} steps of "
            f"{sampling.solver}",
        ),
        *_size_rows(model),
    ]


def _size_rows(model: ModelSpec) -> list[tuple[str, str]]:
    """Which sizes and lengths the model generates."""
    sides = zip(
        ("height", "width"),
        model.size_multiples,
        model.least_size,
        model.greatest_size,
        strict=True,
    )
    sizes = _sizes(model)
    longest, stride = geometry.longest_clip(model), model.vae.temporal_stride
    return [
        (
            "sizes",
            "; ".join(
                f"{side} a multiple of {multiple} from {least} to {most:,}"
                for side, multiple, least, most in sides
            ),
        ),
        ("--aspect", ", ".join(f"{names[0]} {size}" for size, names in sizes.items() if names)),
        ("lengths", f"{stride}k + 1 frames: 1, {stride + 1}, {2 * stride + 1}, ... {longest:,}"),
    ]


def _show_variant(bundle: Bundle, name: str, variant: Variant) -> None:
    groups = list(_alike(variant.graphs))
    output.table(
        f"Variant {name} ({variant.dtype}): {variant.description}",
        ("graph", "size>", "error>", "tolerance>"),
        [(_label(names), *_graph_row(bundle, variant, names)) for names in groups],
    )
    output.table(
        f"Signatures of {name}",
        ("graph", "", "tensor", "dtype", "shape"),
        [row for names in groups for row in _signature(_label(names), variant.graphs[names[0]])],
    )
    for target, plans in variant.plans.items():
        output.table(
            f"Plans of {name} for {target}",
            ("graph", "size>", "weights>", "activations>", "built with"),
            [(graph, *_plan_row(bundle, plan)) for graph, plan in plans.items()],
        )


def _alike(graphs: dict[str, Graph]) -> Iterator[list[str]]:
    """The names of the graphs; neighbours with one signature (the blocks) together."""

    def stem_and_signature(name: str) -> tuple[object, ...]:
        return name.rstrip("0123456789"), graphs[name].inputs, graphs[name].outputs

    for _, names in itertools.groupby(graphs, stem_and_signature):
        yield list(names)


def _label(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _graph_row(bundle: Bundle, variant: Variant, names: list[str]) -> tuple[str, str, str]:
    graphs = [variant.graphs[name] for name in names]
    files = {path for graph in graphs for path in (graph.path, *graph.weights)}
    total = output.size(sum(bundle.manifest.file(path).bytes for path in files))
    verified = [graph.verification for graph in graphs if graph.verification]
    if len(verified) < len(graphs):
        return total, "not verified", ""
    worst = max(verified, key=lambda verification: verification.max_error / verification.tolerance)
    failed = "" if worst.passed else ", FAILED"
    return total, f"{worst.max_error:.1e}{failed}", f"{worst.tolerance:.0e}"


def _signature(label: str, graph: Graph) -> Iterator[tuple[str, ...]]:
    for side, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        for tensor in tensors:
            shape = ", ".join(str(dim) for dim in tensor.shape)
            yield label, side, tensor.name, tensor.dtype, f"[{shape}]"
            label = ""  # once a graph


def _plan_row(bundle: Bundle, plan: Plan) -> tuple[str, str, str, str]:
    return (
        output.size(bundle.manifest.file(plan.path).bytes),
        output.size(plan.weight_bytes),
        output.size(plan.activation_bytes),
        f"{plan.flavour} {plan.flavour_version}, compute capability {plan.compute_capability}",
    )
