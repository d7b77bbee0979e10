"""Small bundles for tests, and what they have to be made again for."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path


def key() -> str:
    """Changes with every line of code that a bundle depends on, and with what it imports."""
    from sana_rt import freshness

    maker = freshness.maker("export", ("torch", "onnx", "onnxruntime", "onnxscript"))
    return hashlib.sha256(Path(__file__).read_bytes() + maker.encode()).hexdigest()[:16]


def write_tiny(folder: Path) -> Path:
    """Write ``checkpoint``, the smallest with all parts, and ``bundle``, it in float32.

    That takes a minute, and is done once.
    """
    import msgspec

    from sana_rt.export.checkpoint import open_checkpoint
    from sana_rt.export.onnx_export import export_bundle
    from sana_rt.export.seeded import SMALL, write_checkpoint

    bundle = folder / "bundle"
    if not (bundle / "manifest.json").exists():
        edit = msgspec.structs.replace
        transformer, text = (edit(part, num_layers=1) for part in (SMALL.transformer, SMALL.text))
        spec = edit(SMALL, transformer=transformer, text=text)
        export_bundle(open_checkpoint(write_checkpoint(folder / "checkpoint", spec=spec)), bundle)
    return bundle


def write_causal(bidirectional: Path, root: Path) -> None:
    """Copy a bundle and declare the copy block-causal."""
    import msgspec

    from sana_rt import bundle as bundles
    from sana_rt.model_spec import StreamingSpec

    replace = msgspec.structs.replace
    manifest = bundles.Bundle.open(bidirectional).manifest
    for file in manifest.files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bidirectional / file.path, root / file.path)
    sampling = replace(
        manifest.model.sampling, solver="renoise", num_inference_steps=4, guidance_scale=1.0
    )
    model = replace(
        manifest.model,
        transformer=replace(manifest.model.transformer, causal=True),
        sampling=sampling,
        streaming=StreamingSpec(chunk_frames=2),
    )
    bundles.save(root, replace(manifest, model=model))


def write_blocks(root: Path) -> None:
    import msgspec

    from sana_rt import bundle as bundles
    from sana_rt import manifest as manifests
    from sana_rt.export.graphs import DType, transformer_graphs
    from sana_rt.export.onnx_export import TRACE_SIZES, write_graph
    from sana_rt.export.seeded import SMALL, seeded_tensor
    from sana_rt.export.tensor_shapes import transformer
    from sana_rt.export.trace import trace
    from sana_rt.export.weights import LazyTensor, Weights

    small = msgspec.structs.replace(SMALL.transformer, num_layers=2)
    spec = msgspec.structs.replace(SMALL, transformer=small)
    weights = Weights(
        {
            name: LazyTensor(shape, lambda name=name, shape=shape: seeded_tensor(name, shape, 0))
            for name, shape in transformer(spec).items()
        }
    )
    source = manifests.Source("seeded", "none", "0" * 64)
    variants = {}
    dtypes: dict[str, DType] = {"fp32": "float32", "bf16": "bfloat16"}
    for variant, dtype in dtypes.items():
        blocks = [each for each in transformer_graphs(spec, dtype) if each.topology == "block"]
        topology = trace(blocks[0], TRACE_SIZES.dims(spec))
        graphs = {
            each.name: write_graph(topology, each, weights, root / variant) for each in blocks
        }
        variants[variant] = manifests.Variant(dtype, "", source, graphs)
    manifest = manifests.Manifest(
        format=manifests.FORMAT,
        format_version=manifests.FORMAT_VERSION,
        created_by="tests",
        model=spec,
        files=bundles.describe(root, [path for path in root.rglob("*.*") if path.is_file()]),
        variants=variants,
    )
    bundles.save(root, manifest)


def write_720p(folder: Path) -> None:
    """Write ``checkpoint``, a small one with LTX-2's autoencoder and no text encoder, and its
    ``bundle`` in float32.
    """
    import msgspec

    from sana_rt.export.checkpoint import open_checkpoint
    from sana_rt.export.onnx_export import export_bundle
    from sana_rt.export.seeded import SMALL, write_checkpoint
    from sana_rt.model_spec import LTX2_VAE

    edit = msgspec.structs.replace
    vae = edit(
        LTX2_VAE,
        block_out_channels=(64, 64, 64, 64),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_block_out_channels=(16, 32, 64),
        decoder_layers_per_block=(1, 1, 1, 1),
    )
    transformer = edit(
        SMALL.transformer, in_channels=128, out_channels=128, patch_size=(1, 1, 1), num_layers=1
    )
    spec = edit(SMALL, name="small-720p", transformer=transformer, vae=vae)
    checkpoint = write_checkpoint(folder / "checkpoint", spec=spec)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(checkpoint / part)
    export_bundle(open_checkpoint(checkpoint), folder / "bundle")
