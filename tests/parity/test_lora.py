"""LoRAs merged at export against diffusers' `load_lora_weights` and `fuse_lora` (by PEFT)."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sana_rt import graph_names
from sana_rt.bundle import Bundle
from sana_rt.cli import cli
from sana_rt.export import freshness, key_map, lora, onnx_export, tensor_shapes, verify
from sana_rt.export import trace as tracing
from sana_rt.export.checkpoint import Checkpoint, open_checkpoint
from sana_rt.export.graph_definition import GraphDefinition
from sana_rt.export.graphs import definitions
from sana_rt.export.modules.transformer import Transformer
from sana_rt.export.onnx_export import ExportOptions, export_bundle
from sana_rt.export.trace import Topology
from sana_rt.export.weights import LazyTensor, Weights
from sana_rt.files import sha256
from sana_rt.quantize import calibration_table, recipe, variant
from sana_rt.quantize.calibration_table import CalibrationTable
from sana_rt.runtime import backends
from sana_rt.runtime.backends.base import Binding
from sana_rt.runtime.backends.buffers import Memory
from sana_rt.runtime.inputs import Inputs, PromptEmbeds
from sana_rt.runtime.observers import Observer
from sana_rt.runtime.request import for_model
from sana_rt.runtime.session import Session

#: As that of one forward of the transformer against diffusers (test_transformer).
TOLERANCE = 2e-5
#: A merged weight is a float32 sum of the same terms in another order.
WEIGHT_TOLERANCE = 1e-6

CONFIGS = {
    "style": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": r".*(attn[12]\.to_(q|k|v|out\.0)|conv_(inverted|temp))|patch_embedding",
    },
    "other": {
        "r": 3,
        "lora_alpha": 3,
        "target_modules": r".*(attn1\.to_q|attn2\.to_v)|proj_out",
        "alpha_pattern": {"attn2.to_v": 5.0},
        "rank_pattern": {"attn2.to_v": 2},
        "use_rslora": True,
    },
}
SCALES = {"style": 0.8, "other": -1.5}


class Chosen(NamedTuple):
    path: Path
    scale: float = 1.0


@pytest.fixture(scope="module")
def files(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRAs as diffusers saves them, with PEFT's configuration in the header."""
    from diffusers.training_utils import _collate_lora_metadata

    found = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        model = diffusers_transformer(small_checkpoint)
        model.add_adapter(LoraConfig(**config))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.2)
        folder = tmp_path_factory.mktemp(name)
        SanaVideoPipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(model),
            weight_name=f"{name}.safetensors",
            **_collate_lora_metadata({"transformer": model}),
        )
        found[name] = folder / f"{name}.safetensors"
    return found


def diffusers_transformer(checkpoint: Path) -> SanaVideoTransformer3DModel:
    return SanaVideoTransformer3DModel.from_pretrained(checkpoint / "transformer")


def fused(checkpoint: Path, files: Mapping[str, Path]) -> SanaVideoTransformer3DModel:
    """What diffusers makes of the files with their scales."""
    pipeline = SanaVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=diffusers_transformer(checkpoint),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    for name, path in files.items():
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    pipeline.set_adapters(list(files), [SCALES[name] for name in files])
    pipeline.fuse_lora(components=["transformer"], adapter_names=list(files))
    pipeline.unload_lora_weights()
    return pipeline.transformer.eval()


def merged(checkpoint: Path, files: Mapping[str, Path]) -> Checkpoint:
    chosen = [Chosen(path, SCALES[name]) for name, path in files.items()]
    return lora.merge(open_checkpoint(checkpoint), chosen)


def error(actual: Any, wanted: Any) -> float:
    return float(abs(actual - wanted).max() / abs(wanted).max())


@torch.no_grad()
@pytest.mark.parametrize("names", [("style",), ("other",), ("style", "other")])
def test_velocity_is_that_of_diffusers(
    small_checkpoint: Path, files: dict[str, Path], names: tuple[str, ...]
) -> None:
    chosen = {name: files[name] for name in names}
    wanted = fused(small_checkpoint, chosen)
    checkpoint = merged(small_checkpoint, chosen)
    base = diffusers_transformer(small_checkpoint).state_dict()
    for name, weight in wanted.state_dict().items():
        ours = checkpoint.transformer.load(name)
        assert error(ours, weight) < WEIGHT_TOLERANCE, name
        assert (name in checkpoint.changed) == (not torch.equal(weight, base[name])), name
    model = Transformer(checkpoint.spec.transformer).eval()
    model.load_state_dict({each: checkpoint.transformer.load(each) for each in base})
    torch.manual_seed(5)
    latents = torch.randn(2, 16, 3, 8, 12)
    text = torch.randn(2, 7, checkpoint.spec.transformer.caption_channels)
    mask = torch.ones(2, 7, dtype=torch.int64)
    timestep = torch.tensor([930.0, 120.0])
    velocity, _ = model(latents, timestep[:, None].expand(2, 3), text, mask)
    (expected,) = wanted(latents, text, timestep, encoder_attention_mask=mask, return_dict=False)
    assert error(velocity, expected) < TOLERANCE
    plain = diffusers_transformer(small_checkpoint)(
        latents, text, timestep, encoder_attention_mask=mask, return_dict=False
    )
    assert error(plain[0], expected) > 0.01, "a LoRA that changes nothing would prove nothing"


def respelt(file: Path, layer: str, down: str, up: str) -> dict[str, torch.Tensor]:
    """A LoRA under other names; ``layer`` has the place of the layer's name."""
    tensors = load_file(file)
    renamed = {}
    for key, tensor in tensors.items():
        name, factor, _ = key.removeprefix("transformer.").rsplit(".", 2)
        spelt = layer.format(dotted=name, underscored=name.replace(".", "_"))
        renamed[f"{spelt}.{down if factor == 'lora_A' else up}.weight"] = tensor
    return renamed


SPELLINGS = {
    "kohya": ("lora_unet_{underscored}", "lora_down", "lora_up"),
    "kohya_transformer": ("lora_transformer_{underscored}", "lora_down", "lora_up"),
    "diffusion_model": ("diffusion_model.{dotted}", "lora_A", "lora_B"),
    "peft": ("base_model.model.{dotted}", "lora_A.default", "lora_B.default"),
    "old_diffusers": ("transformer.{dotted}", "lora.down", "lora.up"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_are_the_same(
    small_checkpoint: Path, files: dict[str, Path], tmp_path: Path, spelling: str
) -> None:
    layer, down, up = SPELLINGS[spelling]
    tensors = respelt(files["style"], layer, down, up)
    alphas = {f"{key.removesuffix(f'.{down}.weight')}.alpha" for key in tensors if down in key}
    config = CONFIGS["style"]
    tensors |= {key: torch.tensor(float(str(config["lora_alpha"]))) for key in alphas}
    save_file(tensors, tmp_path / "style.safetensors")
    again = merged(small_checkpoint, {"style": tmp_path / "style.safetensors"})
    wanted = merged(small_checkpoint, {"style": files["style"]})
    assert again.changed == wanted.changed
    for name in wanted.changed:
        assert torch.equal(again.transformer.load(name), wanted.transformer.load(name))


def test_pefts_own_folder(small_checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """Its configuration lies beside the weights, not in them."""
    tensors = respelt(files["other"], "base_model.model.{dotted}", "lora_A", "lora_B")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    LoraConfig(**CONFIGS["other"]).save_pretrained(tmp_path)
    again = merged(small_checkpoint, {"other": tmp_path})
    wanted = merged(small_checkpoint, {"other": files["other"]})
    for name in wanted.changed:
        assert torch.equal(again.transformer.load(name), wanted.transformer.load(name))


def test_layers_of_the_original_code(small_checkpoint: Path, tmp_path: Path) -> None:
    """One factor pair of a fused projection changes the rows of all its parts."""
    torch.manual_seed(3)
    spec = open_checkpoint(small_checkpoint).spec
    width = spec.transformer.width
    up, down = torch.randn(3 * width, 2), torch.randn(2, width)
    tensors = {
        "lora_unet_blocks_1_attn_qkv.lora_up.weight": up,
        "lora_unet_blocks_1_attn_qkv.lora_down.weight": down,
        "lora_unet_blocks_1_attn_qkv.alpha": torch.tensor([1.0]),
        "blocks.0.mlp.t_conv.lora_B.weight": torch.randn(width, 2, 1, 1),
        "blocks.0.mlp.t_conv.lora_A.weight": torch.randn(2, width, 3, 1),
    }
    save_file(tensors, tmp_path / "original.safetensors")
    plain = open_checkpoint(small_checkpoint)
    found = lora.merge(plain, [Chosen(tmp_path / "original.safetensors")])
    attention = [f"transformer_blocks.1.attn1.to_{part}.weight" for part in "qkv"]
    assert found.changed == {*attention, "transformer_blocks.0.ff.conv_temp.weight"}
    added = torch.cat([found.transformer.load(n) - plain.transformer.load(n) for n in attention])
    assert error(added, up @ down / 2) < WEIGHT_TOLERANCE


def test_every_layer_has_an_original_name(small_checkpoint: Path) -> None:
    """And the table that reads original checkpoints leads back."""
    shapes = tensor_shapes.transformer(open_checkpoint(small_checkpoint).spec)
    for name in (each for each, shape in shapes.items() if len(shape) >= 2 and "table" not in each):
        original = key_map.to_original(name.removesuffix(".weight")) + ".weight"
        lazy = Weights({original: LazyTensor((6, 1), lambda: torch.zeros(6, 1))})
        assert name in key_map.to_diffusers(lazy)


class Watch(Observer):
    """Keeps what the transformer is given and what it says, of the last forward."""

    def __init__(self) -> None:
        self.seen: dict[str, NDArray[Any]] = {}

    def after(self, binding: Binding, memory: Memory) -> None:
        wanted = {
            graph_names.PATCH_EMBED: ("latents",),
            graph_names.TIMESTEP: ("timestep",),
            graph_names.FINAL_LAYER: ("velocity",),
        }
        buffers = {**binding.inputs, **binding.outputs}
        for name in wanted.get(binding.graph, ()):
            self.seen[name] = memory.download(buffers[name]).copy()


@pytest.fixture(scope="module")
def root(
    small_bundle: Path,
    small_checkpoint: Path,
    files: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The small bundle, and three variants of it with LoRAs."""
    root = tmp_path_factory.mktemp("lora") / "bundle"
    shutil.copytree(small_bundle, root)
    traced: dict[str, Topology] = {}  # which is the same for all three, and takes long

    def trace(definition: GraphDefinition, dims: dict[str, int]) -> Topology:
        if definition.topology not in traced:
            traced[definition.topology] = tracing.trace(definition, dims)
        return traced[definition.topology]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "trace", trace)
        for names in (["style", "other"], ["style"], ["other"]):
            chosen = {name: files[name] for name in names}
            export_bundle(merged(small_checkpoint, chosen), root, ExportOptions(verify=False))
    return root


@torch.no_grad()
def test_the_exported_graphs_are_diffusers(
    root: Path, small_checkpoint: Path, files: dict[str, Path]
) -> None:
    watch = Watch()
    session = Session.open(root, variant="fp32-other--1.5-style-0.8", threads=1, observers=(watch,))
    random = np.random.default_rng(7)
    spec = session.model
    length, channels = spec.text.max_tokens, spec.transformer.caption_channels
    embeds = PromptEmbeds(
        random.standard_normal((1, length, channels), np.float32), np.ones((1, length), np.int64)
    )
    given = {"height": 64, "width": 64, "num_frames": 9, "guidance_scale": 1.0}
    request = for_model(spec, given | {"num_inference_steps": 2})
    for _ in session.latents(request, Inputs(prompt_embeds=(embeds,))):
        pass
    seen = {name: torch.from_numpy(array) for name, array in watch.seen.items()}
    (expected,) = fused(small_checkpoint, files)(
        seen["latents"],
        torch.from_numpy(embeds.hidden_states),
        seen["timestep"][:, 0],
        encoder_attention_mask=torch.from_numpy(embeds.attention_mask),
        return_dict=False,
    )
    assert error(seen["velocity"], expected) < TOLERANCE


def sizes(bundle: Bundle, name: str) -> tuple[int, int]:
    """Bytes of the files that only one variant has, and of its transformer."""
    variants = bundle.manifest.variants
    others = {path for each in variants if each != name for path in variants[each].paths()}
    own = {*variants[name].paths()} - others
    transformer = {
        path
        for graph_name, graph in variants[name].graphs.items()
        if (role := graph_names.role(graph_name)) is not None and role.part == "transformer"
        for path in (graph.path, *graph.weights)
    }
    return tuple(sum(bundle.manifest.file(p).bytes for p in each) for each in (own, transformer))  # type: ignore[return-value]


def test_a_variant_shares_what_it_does_not_change(root: Path) -> None:
    bundle = Bundle.open(root)
    variants = bundle.manifest.variants
    names = ["fp32-other--1.5-style-0.8", "fp32-style-0.8", "fp32-other--1.5"]
    assert list(variants) == ["fp32", *names]
    for name in names:
        own, transformer = sizes(bundle, name)
        assert own < 1.2 * transformer
        shared = {
            each
            for each, graph in variants[name].graphs.items()
            if graph == variants["fp32"].graphs[each]
        }
        assert {"text_encoder", "vae_decoder", "timestep", "solver"} <= shared
        assert not {each for each in shared if graph_names.is_block(each)}
        assert ("patch_embed" in shared) == ("style" not in name)
        assert ("final_layer" in shared) == ("other" not in name)
    listed = {file.path for file in bundle.manifest.files}
    there = {path.relative_to(root).as_posix() for path in root.rglob("*.*") if path.is_file()}
    assert there - {"manifest.json", ".lock"} == listed


def test_what_a_variant_has_is_shown(root: Path, files: dict[str, Path]) -> None:
    found = CliRunner().invoke(cli, ["inspect", str(root), "--json"])
    assert found.exit_code == 0
    source = json.loads(found.stdout)["manifest"]["variants"]["fp32-style-0.8"]["source"]
    (one,) = source["merged"]["loras"]
    assert one == {"name": "style.safetensors", "sha256": sha256(files["style"]), "scale": 0.8}
    for command in (["inspect", str(root)], ["list", "variants", str(root)]):
        shown = CliRunner().invoke(cli, command, env={"COLUMNS": "200"})
        assert shown.exit_code == 0, shown.output
        assert "style.safetensors=0.8" in shown.output
        assert sha256(files["style"])[:12] in shown.output


def test_what_is_current_is_not_exported_again(
    root: Path, small_checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    run = ["export", str(small_checkpoint), str(root), "--no-verify", "--lora"]
    current = CliRunner().invoke(cli, [*run, f"{files['style']}=0.8"])
    assert current.exit_code == 0, current.output
    assert f"fp32-style-0.8 of {root} is current" in current.stderr
    taken = CliRunner().invoke(cli, [*run, str(files["style"]), "--variant", "fp32"])
    assert taken.exit_code == 2
    assert f"The variant 'fp32' of {root} has no LoRA." in taken.stderr
    trained = dict(load_file(files["style"]))
    trained[next(iter(trained))] *= 2
    with safe_open(files["style"], "pt") as file:
        save_file(trained, tmp_path / "style.safetensors", file.metadata())
    further = merged(small_checkpoint, {"style": tmp_path / "style.safetensors"})
    found = freshness.reasons(root, further, ExportOptions(verify=False))
    assert found == ("the loras changed",)


def test_verifying_a_variant(root: Path, small_checkpoint: Path, files: dict[str, Path]) -> None:
    bundle = Bundle.open(root)
    style = {"fp32-style-0.8": bundle.manifest.variant("fp32-style-0.8")}
    alone = Bundle(root, msgspec.structs.replace(bundle.manifest, variants=style))
    findings = verify.verify_bundle(alone, open_checkpoint(small_checkpoint))
    reasons = {each.what: each.message for each in findings if each.outcome == "not checked"}
    assert reasons["fp32-style-0.8"].startswith("it has style.safetensors=0.8 (SHA-256 ")
    assert reasons["fp32-style-0.8"].endswith("give what it has with --lora")
    checkpoint = merged(small_checkpoint, {"style": files["style"]})
    definition = next(
        each for each in definitions(checkpoint, "float32") if each.name == "block_01"
    )
    graph = bundle.manifest.variant("fp32-style-0.8").graphs["block_01"]
    assert verify.compare(definition, bundle.path(graph.path), checkpoint).passed
    plain = bundle.manifest.variant("fp32").graphs["block_01"]
    assert not verify.compare(definition, bundle.path(plain.path), checkpoint).passed


def test_the_checkpoints_own_weights_are_played_unasked(root: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(root)
    variants = dict(reversed(bundle.manifest.variants.items()))
    first = msgspec.structs.replace(bundle.manifest, variants=variants)
    opened, played = backends.select("onnxruntime", first.variants, None)
    opened.close()
    assert played == "fp32"


def test_quantizing_a_variant(root: Path, tmp_path: Path) -> None:
    """It has other scales than the checkpoint; the calibration says of which weights it is."""
    copy = shutil.copytree(root, tmp_path / "bundle")
    rule = recipe.Rule(("block_*/attn1.to_q",), "nvfp4", "a test", "tests")
    own = recipe.Recipe("own", "A test.", (rule,))
    loaded = recipe.LoadedRecipe(own, "1" * 64)
    bundle = Bundle.open(copy)
    layers = variant.layer_formats(bundle, loaded, "fp32-style-0.8")
    sources = {name: each.source for name, each in bundle.manifest.variants.items()}
    made = bundle
    for of in ("fp32", "fp32-style-0.8"):
        table = CalibrationTable(
            calibration_table.FORMAT, 1, sources[of].sha256, "2" * 64, 4, "max",
            dict.fromkeys(layers, 3.0), {},
        )  # fmt: skip
        made = variant.quantize_bundle(copy, loaded, table, source="fp32-style-0.8")
        (name,) = variant.variant_names(made.manifest, "own", "fp32-style-0.8")
        assert name == "nvfp4-own-emulation-style-0.8"
        quantization = made.manifest.variant(name).quantization
        assert quantization is not None
        assert quantization.calibration is not None
        assert quantization.calibration.source_sha256 == sources[of].sha256
        assert made.manifest.variant(name).source == sources["fp32-style-0.8"]
    plain = variant.quantize_bundle(copy, loaded)
    assert variant.variant_names(plain.manifest, "own", "fp32") == ["nvfp4-own-emulation"]
    base, changed = (
        plain.manifest.variant(f"nvfp4-own-emulation{suffix}").graphs["block_00"]
        for suffix in ("", "-style-0.8")
    )
    weights = [plain.path(graph.weights[0]).read_bytes() for graph in (base, changed)]
    assert weights[0] != weights[1]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' and PEFT's own
        yield
