"""Write the corpus of manifests: ``python tests/data/manifests/make.py``.

A valid manifest states what readers must accept. An invalid one is ``minimal.json``,
``plans.json`` or ``complete.json`` with one change and is named after it. ``index.json`` lists
every file with the verdict, the error that a refusal names, and whether the JSON Schema refuses
it too. Readers in any language use the same corpus.
"""

from __future__ import annotations

import copy
import json
import operator
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
Json = dict[str, Any]

HASH = "0123456789abcdef" * 4

MINIMAL: Json = {
    "format": "sana-rt-bundle",
    "format_version": 2,
    "created_by": "sana-rt 0.1.0",
    "model": {
        "name": "tiny",
        "transformer": {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": [1, 2, 2],
            "num_layers": 2,
            "num_heads": 2,
            "head_dim": 12,
            "num_cross_heads": 2,
            "cross_head_dim": 12,
            "caption_channels": 16,
            "ffn_dim": 72,
        },
        "vae": {
            "kind": "wan",
            "latent_channels": 16,
            "temporal_stride": 4,
            "spatial_stride": 8,
        },
        "text": {
            "vocab_size": 256,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 8,
            "query_pre_attn_scalar": 8.0,
        },
    },
    "files": [
        {"path": "fp32/timestep.onnx", "bytes": 321, "sha256": HASH},
        {"path": "fp32/timestep.bin", "bytes": 65536, "sha256": HASH},
    ],
    "variants": {
        "fp32": {
            "dtype": "float32",
            "description": "The checkpoint's weights as they are.",
            "source": {"checkpoint": "tiny", "layout": "diffusers", "sha256": HASH},
            "graphs": {
                "timestep": {
                    "path": "fp32/timestep.onnx",
                    "weights": ["fp32/timestep.bin"],
                    "opset": 20,
                    "inputs": [
                        {"name": "timestep", "dtype": "float32", "shape": ["batch", "frames"]}
                    ],
                    "outputs": [
                        {
                            "name": "modulation",
                            "dtype": "float32",
                            "shape": ["batch", "frames", 6, 24],
                        },
                        {
                            "name": "embedding",
                            "dtype": "float32",
                            "shape": ["batch", "frames", 24],
                        },
                    ],
                }
            },
        }
    },
}

DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float4_e2m1",
    "int64",
    "int32",
    "uint8",
    "bool",
)

PLAN: Json = {
    "path": "fp32/sm120/timestep.plan",
    "log": "fp32/sm120/timestep.log",
    "flavour": "rtx",
    "flavour_version": "1.7.1.116",
    "compute_capability": "12.0",
    "profile": {
        "batch": {"min": 1, "opt": 2, "max": 2},
        "frames": {"min": 1, "opt": 21, "max": 21},
    },
    "built_from": {"graph": HASH, "weights": [HASH], "quantization": None},
    "options": {"optimization_level": "3"},
    "inputs": MINIMAL["variants"]["fp32"]["graphs"]["timestep"]["inputs"],
    "outputs": MINIMAL["variants"]["fp32"]["graphs"]["timestep"]["outputs"],
    "activation_bytes": 8_388_608,
    "weight_bytes": 4_194_304,
    "user_allocation": True,
}


def at(path: str) -> list[str | int]:
    """``a:0:b`` as keys; digits are an index."""
    return [int(part) if part.isdigit() else part for part in path.split(":")]


def changed(base: Json, path: str, value: Any) -> Json:
    """A copy of ``base`` with ``value`` at ``path`` (``a:0:b``)."""
    result = copy.deepcopy(base)
    *parents, last = at(path)
    reduce(operator.getitem, parents, result)[last] = value  # type: ignore[index]
    return result


def without(base: Json, path: str) -> Json:
    """A copy of ``base`` without the member at ``path``."""
    result = copy.deepcopy(base)
    *parents, last = at(path)
    del reduce(operator.getitem, parents, result)[last]  # type: ignore[arg-type]
    return result


def dump(value: Json | list[Json]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


FILE = MINIMAL["files"][0]
FP32 = MINIMAL["variants"]["fp32"]
QUANTIZED: Json = {
    "recipe": "paper",
    "recipe_sha256": HASH,
    "form": "emulation",
    "calibration": {
        "algorithm": "awq-lite",
        "sha256": HASH,
        "prompts_sha256": HASH,
        "source_sha256": HASH,
        "passes": 12,
    },
}
LORA: Json = {"name": "Style (v2).safetensors", "sha256": HASH, "scale": 0.8}
SOURCE = "variants:fp32:source"
MERGED = changed(
    MINIMAL, f"{SOURCE}:merged", {"base": HASH[::-1], "loras": [LORA, {**LORA, "scale": -1}]}
)
GRAPH = "variants:fp32:graphs:timestep"
GRAPHS = MINIMAL["variants"]["fp32"]["graphs"]
PLAN_FILES = [{**FILE, "path": PLAN[key]} for key in ("path", "log")]
WITH_PLAN_FILE = changed(MINIMAL, "files", [*MINIMAL["files"], *PLAN_FILES])
PLANS = changed(WITH_PLAN_FILE, "variants:fp32:plans", {"sm120": {"timestep": PLAN}})
PLAN_AT = "variants:fp32:plans:sm120:timestep"
TEXT = dump(MINIMAL).decode()


def valid() -> dict[str, Json]:
    """Manifests by name."""
    verification = {
        "max_error": 3.1e-07,
        "tolerance": 1e-05,
        "reference": "torch 2.13.0",
        "dims": [{"batch": 2, "frames": 3}, {"batch": 1, "frames": 1}],
    }
    quantized = changed(in_bfloat16(FP32), "quantization", {**QUANTIZED, "form": "device"})
    other_source = changed(FP32, "source", {**FP32["source"], "sha256": HASH[::-1]})
    every_dtype = [{"name": f"x_{name}", "dtype": name, "shape": []} for name in DTYPES]
    tokenizer = [*MINIMAL["files"], {**FILE, "path": "tokenizer.json"}]
    return {
        "minimal": MINIMAL,
        "plans": PLANS,
        "complete": COMPLETE,
        "without_text_encoder": without(COMPLETE, "variants:fp32:graphs:text_encoder"),
        "without_autoencoder": changed(
            changed(COMPLETE, "variants:fp32:graphs", {**text_graphs(), **transformer_graphs()}),
            DECODER,
            None,
        ),
        "another_autoencoder": changed(MINIMAL, "model:vae", {**LTX2, **LTX2_THIN}),
        "autoencoder_of_ltx2": changed(MINIMAL, "model:vae", LTX2),
        "windows": WINDOWS,
        "windows_that_look_at_nothing_ahead": changed(
            changed(WINDOWS, "variants:fp32:graphs", windows_graphs(cache=False)),
            DECODER,
            {**LTX2_WINDOW, "lookahead": 0, "blend": 0, "caches": 0},
        ),
        "verified": changed(MINIMAL, f"{GRAPH}:verification", verification),
        "two_variants": changed(MINIMAL, "variants:nvfp4-paper.v2", quantized),
        "two_checkpoints": changed(MINIMAL, "variants:fp32-lora", other_source),
        "loras": MERGED,
        "quantized": changed(MINIMAL, "variants:fp32:quantization", QUANTIZED),
        "quantized_without_calibration": changed(
            MINIMAL, "variants:fp32:quantization", without(QUANTIZED, "calibration")
        ),
        "plan_of_quantized": changed(PLANS, f"{PLAN_AT}:built_from:quantization", QUANTIZED),
        "every_dtype": with_unknown_graph(inputs=every_dtype),
        "streaming": changed(CAUSAL, "model:streaming", STREAMING),
        "tokenizer": changed(changed(MINIMAL, "files", tokenizer), "tokenizer", "tokenizer.json"),
        "text_in_any_language": changed(MINIMAL, "model:text:instruction", "提示词：\n🎬 "),
        "shared_weights": changed(
            MINIMAL, "variants:fp32:graphs:timestep_again", GRAPHS["timestep"]
        ),
        "file_no_graph_uses": changed(WITH_PLAN_FILE, "files:2:path", "LICENSE"),
        "longest_path": changed(WITH_PLAN_FILE, "files:2:path", "a/" * 127 + "b"),
        "empty_file": changed(WITH_PLAN_FILE, "files:2:bytes", 0),
        "largest_file": changed(WITH_PLAN_FILE, "files:2:bytes", 1 << 40),
        "most_dimensions": with_unknown_graph(inputs=[tensor("x", "int64", "batch", *range(7))]),
        "largest_dimension": with_unknown_graph(inputs=[tensor("x", "int64", (1 << 31) - 1)]),
        "graph_without_inputs": with_unknown_graph(inputs=[]),
        "null_for_absent": changed(MINIMAL, "tokenizer", None),
    }


def tensor(name: str, dtype: str, *shape: str | int) -> Json:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def graph(inputs: list[Json], outputs: list[Json]) -> Json:
    return {**GRAPHS["timestep"], "inputs": inputs, "outputs": outputs}


def with_unknown_graph(inputs: list[Json]) -> Json:
    """A graph that readers do not know beside one that they do; it may be anything."""
    return changed(MINIMAL, "variants:fp32:graphs:another", graph(inputs, []))


def in_bfloat16(variant: Json) -> Json:
    """A variant whose only graph, ``timestep``, writes bfloat16."""
    outputs = [{**each, "dtype": "bfloat16"} for each in GRAPHS["timestep"]["outputs"]]
    return changed({**variant, "dtype": "bfloat16"}, "graphs:timestep:outputs", outputs)


def out(*tensors: Json) -> list[Json]:
    """The next values of inputs."""
    return [{**each, "name": f"{each['name']}_out"} for each in tensors]


# The signatures of minimal.json's model, by hand: D = 2 heads of 12, S = 300 text tokens,
# 16 channels. Of a head, 4 channels are rotated by each position: 2 pairs of cos and sin.
GRID = ("frames", "rows", "columns")
LATENTS = ("batch", 16, "frames", "latent_height", "latent_width")
TOKENS = tensor("tokens", "float32", "batch", *GRID, 24)
MODULATION = tensor("modulation", "float32", "batch", "frames", 6, 24)
EMBEDDING = tensor("embedding", "float32", "batch", "frames", 24)
BIAS = tensor("text_bias", "float32", "batch", 1, 1, 300)
TABLES = [
    tensor(f"rope_{axis}", "float32", dim, 2, 2) for axis, dim in zip("thw", GRID, strict=True)
]
STATE = [
    tensor("state_s", "float32", "batch", 2, 12, 12),
    tensor("state_k", "float32", "batch", 2, 12),
    tensor("state_z", "float32", "batch", "rows", "columns", 24),
]


def text_graphs() -> Json:
    tokens = [tensor(name, "int64", "batch", "length") for name in ("input_ids", "attention_mask")]
    hidden = tensor("hidden_states", "float32", "batch", "length", 16)
    seen = [
        tensor("hidden_states", "float32", "batch", 300, 16),
        tensor("attention_mask", "int64", "batch", 300),
    ]
    keys = [tensor(name, "float32", 2, "batch", 2, 300, 12) for name in ("text_k", "text_v")]
    return {"text_encoder": graph(tokens, [hidden]), "prompt": graph(seen, [*keys, BIAS])}


def transformer_graphs() -> Json:
    indices = [
        tensor(f"{name}_index", "int64", dim)
        for name, dim in zip(("frame", "row", "column"), GRID, strict=True)
    ]
    keys = [tensor(name, "float32", "batch", 2, 300, 12) for name in ("text_k", "text_v")]
    block = graph([TOKENS, MODULATION, *keys, BIAS, *TABLES, *STATE], out(TOKENS, *STATE))
    velocities = ("velocity_negative", "velocity_positive", "previous_sample", "noise")
    moved = [tensor(name, "float32", *LATENTS) for name in ("latents", *velocities)]
    made = [tensor(name, "float32", *LATENTS) for name in ("latents_out", "sample")]
    return {
        "rope": graph(indices, TABLES),
        "timestep": GRAPHS["timestep"],
        "patch_embed": graph([moved[0]], [TOKENS]),
        "block_00": block,
        "block_01": block,
        "final_layer": graph([TOKENS, EMBEDDING], [tensor("velocity", "float32", *LATENTS)]),
        "solver": graph([*moved, tensor("coefficients", "float32", "frames", 6)], made),
    }


# An autoencoder of two levels, each 4 channels wide, the lower of which doubles the frames. Its
# causal convolutions: from the latents; 4 in the middle; 4 and one in time; 4, the first of which
# sees the channels that upsampling halved; to the pictures.
VAE: Json = {
    "kind": "wan",
    "latent_channels": 16,
    "temporal_stride": 2,
    "spatial_stride": 2,
    "base_dim": 4,
    "dim_mult": [1, 1],
    "num_res_blocks": 1,
    "temporal_downsample": [True],
}
SMALL, LARGE = ("latent_height", "latent_width"), ("height", "width")
CONVOLUTIONS = [(16, SMALL), *[(4, SMALL)] * 9, (2, LARGE), *[(4, LARGE)] * 4]


def autoencoder_graphs() -> Json:
    latents = tensor("latents", "float32", "batch", 16, 1, *SMALL)
    caches = [
        tensor(f"cache_{index:02d}", "float32", "batch", 2, channels, *size)
        for index, (channels, size) in enumerate(CONVOLUTIONS)
    ]
    first, later = (tensor("frames", "uint8", "batch", count, *LARGE, 3) for count in (1, 2))
    return {
        "vae_decoder_first": graph([latents], [first, *out(*caches)]),
        "vae_decoder": graph([latents, *caches], [later, *out(*caches)]),
        "vae_encoder": graph([tensor("image", "uint8", "batch", *LARGE, 3)], [latents]),
    }


DECODER = "variants:fp32:decoder"
WINDOW: Json = {
    "latent_frames": 1,
    "frames": 2,
    "first_latent_frames": 1,
    "first_frames": 1,
    "lookahead": 0,
    "caches": 15,
}
COMPLETE: Json = changed(
    changed(changed(MINIMAL, "model:vae", VAE), DECODER, WINDOW),
    "variants:fp32:graphs",
    {**text_graphs(), **transformer_graphs(), **autoencoder_graphs()},
)
LTX2: Json = {
    "kind": "ltx2",
    "latent_channels": 16,
    "temporal_stride": 8,
    "spatial_stride": 32,
    "block_out_channels": [64, 64, 64, 64],
}
LTX2_THIN: Json = {
    "temporal_stride": 4,
    "spatial_stride": 8,
    "patch_size": 2,
    "block_out_channels": [16, 32],
    "layers_per_block": [1, 2, 1],
    "downsample_type": ["spatiotemporal", "spatiotemporal"],
    "decoder_block_out_channels": [16, 16, 16],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "upsample_type": ["temporal", "spatiotemporal", "spatial"],
    "upsample_residual": [True, False, True],
    "upsample_factor": [2, 1, 2],
    "encoder_causal": False,
    "decoder_causal": True,
    "encoder_padding": "reflect",
    "decoder_padding": "zeros",
    "norm_eps": 1e-5,
}
LTX2_WINDOW: Json = {
    "latent_frames": 1,
    "frames": 8,
    "first_latent_frames": 2,
    "first_frames": 9,
    "lookahead": 1,
    "caches": 1,
    "lookback": 1,
    "blend": 8,
}


def windows_graphs(cache: bool = True) -> Json:
    """Of LTX-2's autoencoder: a clip at once, in windows, and the encoder."""
    latents = {
        frames: tensor("latents", "float32", "batch", 16, frames, *SMALL)
        for frames in (1, 2, 3, "seen", "frames")
    }
    shown = {
        count: tensor("frames", "uint8", "batch", count, *LARGE, 3)
        for count in (8, 9, "video_frames")
    }
    caches = [tensor("cache_00", "float32", "batch", 8, 3, *LARGE)] if cache else []
    first, later = (latents[3], latents["seen"]) if cache else (latents[2], latents[2])
    return {
        "vae_decoder_whole": graph([latents["frames"]], [shown["video_frames"]]),
        "vae_decoder_first": graph([first], [shown[9], *out(*caches)]),
        "vae_decoder": graph([later, *caches], [shown[8], *out(*caches)]),
        "vae_encoder": graph([tensor("image", "uint8", "batch", *LARGE, 3)], [latents[1]]),
    }


WINDOWS: Json = changed(
    changed(changed(MINIMAL, "model:vae", LTX2), DECODER, LTX2_WINDOW),
    "variants:fp32:graphs",
    windows_graphs(),
)
STREAMING: Json = {
    "chunk_frames": 10,
    "timesteps": [1000, 960.0, 889, 727.0],
    "flow_shift": 7.0,
}
CAUSAL = changed(MINIMAL, "model:transformer:causal", True)


class Case(NamedTuple):
    """An invalid manifest: its error, its bytes, and whether the schema refuses it too."""

    error: str
    data: bytes
    schema: bool = True


def deep(levels: int) -> bytes:
    """JSON in which arrays nest ``levels`` deep inside the root object."""
    return TEXT.replace("[", "[" * levels, 1).replace("]", "]" * levels, 1).encode()


def syntax() -> dict[str, Case]:
    """What a JSON parser meets."""
    error = "ManifestSyntaxError"
    nan = TEXT.replace("8.0", "NaN")
    lone = TEXT.replace('"tiny"', '"\\ud800"', 1)
    twice = TEXT.replace('"format":', '"format": "sana-rt-bundle",\n  "format":', 1)
    nested = TEXT.replace('"opset":', '"opset": 19,\n          "opset":', 1)
    return {
        "empty": Case(error, b"", schema=False),
        "truncated": Case(error, TEXT[: len(TEXT) // 2].encode(), schema=False),
        "text_after_the_end": Case(error, (TEXT + "{}").encode(), schema=False),
        "comment": Case(error, ("// a bundle\n" + TEXT).encode(), schema=False),
        "array_for_object": Case(error, f"[{TEXT}]".encode()),
        "utf16": Case(error, TEXT.encode("utf-16"), schema=False),
        "byte_order_mark": Case(error, TEXT.encode("utf-8-sig"), schema=False),
        "broken_utf8": Case(error, TEXT.encode().replace(b"tiny", b"t\xffny", 1), schema=False),
        "half_a_surrogate_pair": Case(error, lone.encode(), schema=False),
        "nan": Case(error, nan.encode(), schema=False),
        "infinity": Case(error, nan.replace("NaN", "Infinity").encode(), schema=False),
        "duplicate_key": Case("ManifestDuplicateError", twice.encode(), schema=False),
        "duplicate_nested_key": Case("ManifestDuplicateError", nested.encode(), schema=False),
    }


def limits() -> dict[str, Case]:
    """What would exhaust or confuse a reader."""
    error = "ManifestLimitError"
    size = '"bytes": 65536'
    return {
        "nested_too_deep": Case(error, deep(14)),
        "nested_a_hundred_thousand_deep": Case(error, deep(100_000), schema=False),
        "integer_above_2_to_53": Case(error, TEXT.replace(size, f'"bytes": {1 << 53}').encode()),
        "integer_of_ten_thousand_digits": Case(
            error, TEXT.replace(size, f'"bytes": {"9" * 10_000}').encode(), schema=False
        ),
        "float_above_float64": Case(error, TEXT.replace("8.0", "1e400").encode(), schema=False),
        "file_above_a_tebibyte": Case(
            error, dump(changed(MINIMAL, "files:1:bytes", (1 << 40) + 1))
        ),
    }


def versions() -> dict[str, Case]:
    """Another format, or another version of this one."""
    error = "ManifestVersionError"
    first = without(changed(MINIMAL, "format_version", 1), "variants:fp32:source")
    return {
        "version_1": Case(error, dump({**first, "source": FP32["source"]})),
        "another_format": Case(error, dump(changed(MINIMAL, "format", "onnx-bundle"))),
        "no_format": Case(error, dump(without(MINIMAL, "format"))),
        "no_version": Case(error, dump(without(MINIMAL, "format_version"))),
        "newer_version": Case(
            error, dump({**MINIMAL, "format_version": 3, "a_field_of_version_3": True})
        ),
        "version_as_text": Case(error, dump(changed(MINIMAL, "format_version", "2"))),
        "version_true": Case(error, dump(changed(MINIMAL, "format_version", True))),
        "version_as_float": Case(
            error, dump(changed(MINIMAL, "format_version", 2.0)), schema=False
        ),
    }


def fields() -> dict[str, Case]:
    """Fields that are missing, unknown, or of the wrong type."""
    field, kind = "ManifestFieldError", "ManifestSyntaxError"
    misspelt = without(
        changed(MINIMAL, "model:vae:latent_chanels", 16), "model:vae:latent_channels"
    )
    return {
        "unknown_field": Case(field, dump({**MINIMAL, "licence": "MIT"})),
        "unknown_nested_field": Case(field, dump(changed(MINIMAL, "files:0:mode", 493))),
        "misspelt_field": Case(field, dump(misspelt)),
        "source_of_all_variants": Case(field, dump({**MINIMAL, "source": FP32["source"]})),
        "field_of_another_autoencoder": Case(
            field,
            dump(changed(changed(MINIMAL, "model:vae:kind", "ltx2"), "model:vae:base_dim", 96)),
        ),
        "autoencoder_without_kind": Case(field, dump(without(MINIMAL, "model:vae:kind"))),
        "missing_field": Case(field, dump(without(MINIMAL, f"{GRAPH}:opset"))),
        "number_as_text": Case(kind, dump(changed(MINIMAL, "files:0:bytes", "321"))),
        "scale_as_text": Case(kind, dump(changed(MERGED, f"{SOURCE}:merged:loras:0:scale", "0.8"))),
        "number_as_float": Case(kind, dump(changed(MINIMAL, "files:0:bytes", 321.0)), schema=False),
        "true_as_number": Case(kind, dump(changed(MINIMAL, f"{GRAPH}:opset", True))),
        "null_for_list": Case(kind, dump(changed(MINIMAL, f"{GRAPH}:weights", None))),
        "list_for_object": Case(kind, dump(changed(MINIMAL, "variants", []))),
    }


def values() -> dict[str, Case]:
    """Values outside the range of their field."""
    error = "ManifestValueError"
    heads = "model:transformer:num_heads"
    flavour = changed(PLANS, f"{PLAN_AT}:flavour", "cuda")
    order = changed(PLANS, f"{PLAN_AT}:profile:batch:min", 3)
    negative = {"max_error": -1.0, "tolerance": 1e-5, "reference": "torch", "dims": []}
    quantized = "variants:fp32:quantization"
    made = changed(MINIMAL, quantized, QUANTIZED)
    return {
        "merged_of_nothing": Case(error, dump(changed(MERGED, f"{SOURCE}:merged:loras", []))),
        "short_base_hash": Case(error, dump(changed(MERGED, f"{SOURCE}:merged:base", HASH[:-1]))),
        "short_lora_hash": Case(
            error, dump(changed(MERGED, f"{SOURCE}:merged:loras:1:sha256", HASH[:-1]))
        ),
        "unknown_form": Case(error, dump(changed(made, f"{quantized}:form", "int4"))),
        "recipe_in_capitals": Case(error, dump(changed(made, f"{quantized}:recipe", "Paper"))),
        "short_recipe_hash": Case(
            error, dump(changed(made, f"{quantized}:recipe_sha256", HASH[:-1]))
        ),
        "short_calibration_hash": Case(
            error, dump(changed(made, f"{quantized}:calibration:prompts_sha256", ""))
        ),
        "calibrated_on_nothing": Case(
            error, dump(changed(made, f"{quantized}:calibration:passes", 0))
        ),
        "upsampling_by_nothing": Case(
            error, dump(changed(WINDOWS, "model:vae:upsample_type", ["none"] * 3))
        ),
        "padding_with_ones": Case(
            error, dump(changed(WINDOWS, "model:vae:decoder_padding", "ones"))
        ),
        "decoder_that_takes_nothing": Case(
            error, dump(changed(COMPLETE, f"{DECODER}:latent_frames", 0))
        ),
        "negative_size": Case(error, dump(changed(MINIMAL, "files:0:bytes", -1))),
        "short_hash": Case(error, dump(changed(MINIMAL, "files:0:sha256", HASH[:-1]))),
        "upper_case_hash": Case(error, dump(changed(MINIMAL, "files:0:sha256", HASH.upper()))),
        "hash_with_newline": Case(
            error, dump(changed(MINIMAL, "variants:fp32:source:sha256", HASH + "\n")), schema=False
        ),
        "no_heads": Case(error, dump(changed(MINIMAL, heads, 0))),
        "no_variant": Case(error, dump(changed(MINIMAL, "variants", {}))),
        "two_patch_sizes": Case(
            error, dump(changed(MINIMAL, "model:transformer:patch_size", [1, 2]))
        ),
        "unknown_autoencoder": Case(error, dump(changed(MINIMAL, "model:vae:kind", "a field b"))),
        "variant_called_dot_dot": Case(
            error, dump(changed(MINIMAL, "variants:..", {**MINIMAL["variants"]["fp32"]}))
        ),
        "graph_name_with_slash": Case(
            error, dump(changed(MINIMAL, "variants:fp32:graphs:a/b", GRAPHS["timestep"]))
        ),
        "unknown_flavour": Case(error, dump(flavour)),
        "profile_out_of_order": Case(error, dump(order), schema=False),
        "negative_error": Case(error, dump(changed(MINIMAL, f"{GRAPH}:verification", negative))),
    }


PATHS = {
    "absolute": "/etc/passwd",
    "parent": "../timestep.onnx",
    "parent_in_the_middle": "fp32/../../timestep.onnx",
    "current_directory": "./timestep.onnx",
    "empty": "",
    "double_slash": "fp32//timestep.onnx",
    "trailing_slash": "fp32/",
    "backslash": "fp32\\timestep.onnx",
    "drive": "C:timestep.onnx",
    "hidden": ".ssh/id",
    "ends_with_dot": "timestep.onnx.",
    "nul": "timestep\0.onnx",
    "newline": "timestep.onnx\n",
    "space": "time step.onnx",
    "wildcard": "*.onnx",
    "right_to_left": "timestep\u202exnno.",
    "not_ascii": "schr\u00f6dinger.onnx",
    "too_long": "a" * 256,
    "the_manifest": "manifest.json",
    "the_manifest_in_capitals": "Manifest.JSON",
}


def paths() -> dict[str, Case]:
    """Paths that leave the bundle, or that some file system reads differently."""
    only_reader = ("newline", "the_manifest", "the_manifest_in_capitals")
    cases = {
        f"path_{name}": Case(
            "ManifestPathError",
            dump(changed(WITH_PLAN_FILE, "files:2:path", path)),
            schema=name not in only_reader,
        )
        for name, path in PATHS.items()
    }
    for name, path in (("twice", FILE["path"]), ("twice_but_for_case", "FP32/TimeStep.onnx")):
        data = dump(changed(WITH_PLAN_FILE, "files:2:path", path))
        cases[f"path_{name}"] = Case("ManifestDuplicateError", data, schema=False)
    return cases


def references() -> dict[str, Case]:
    """Names of something that is not there."""
    error = "ManifestReferenceError"
    orphan = changed(PLANS, "variants:fp32:plans:sm120:rope", PLAN)
    return {
        "decoder_without_graph": Case(
            error, dump(without(COMPLETE, "variants:fp32:graphs:vae_decoder_first")), schema=False
        ),
        "unlisted_graph": Case(
            error, dump(changed(MINIMAL, f"{GRAPH}:path", "rope.onnx")), schema=False
        ),
        "unlisted_weights": Case(
            error, dump(changed(MINIMAL, f"{GRAPH}:weights", ["rope.bin"])), schema=False
        ),
        "unlisted_plan": Case(
            error, dump(changed(PLANS, f"{PLAN_AT}:path", "rope.plan")), schema=False
        ),
        "unlisted_tokenizer": Case(
            error, dump(changed(MINIMAL, "tokenizer", "tokenizer.json")), schema=False
        ),
        "plan_of_no_graph": Case(error, dump(orphan), schema=False),
        "profile_of_no_dimension": Case(
            error,
            dump(changed(PLANS, f"{PLAN_AT}:profile:rows", {"min": 1, "opt": 1, "max": 1})),
            schema=False,
        ),
        "dimension_without_profile": Case(
            error, dump(without(PLANS, f"{PLAN_AT}:profile:frames")), schema=False
        ),
    }


def shapes() -> dict[str, Case]:
    """Tensors that no graph can have."""
    error = "ManifestShapeError"
    tensor = f"{GRAPH}:inputs:0"
    twice = [*GRAPHS["timestep"]["inputs"]] * 2
    return {
        **{
            f"decoder_of_other_{field}": Case(
                error, dump(changed(COMPLETE, f"{DECODER}:{field}", 4)), schema=False
            )
            for field in WINDOW
        },
        **{
            f"window_of_other_{field}": Case(
                error, dump(changed(WINDOWS, f"{DECODER}:{field}", 5)), schema=False
            )
            for field in LTX2_WINDOW
        },
        "window_without_lookback": Case(
            error, dump(changed(WINDOWS, f"{DECODER}:lookback", 0)), schema=False
        ),
        "window_whose_blend_is_no_cache": Case(
            error, dump(changed(WINDOWS, f"{DECODER}:blend", 0)), schema=False
        ),
        "decoder_of_no_frames": Case(
            error,
            dump(without(COMPLETE, "variants:fp32:graphs:vae_decoder:outputs:0")),
            schema=False,
        ),
        "negative_dimension": Case(
            error, dump(changed(MINIMAL, f"{tensor}:shape", [-1])), schema=False
        ),
        "dimension_above_2_to_31": Case(
            error, dump(changed(MINIMAL, f"{tensor}:shape", [1 << 31])), schema=False
        ),
        "dimension_name_in_capitals": Case(
            error, dump(changed(MINIMAL, f"{tensor}:shape", ["N"])), schema=False
        ),
        "too_many_dimensions": Case(error, dump(changed(MINIMAL, f"{tensor}:shape", [1] * 9))),
        "unknown_dtype": Case(error, dump(changed(MINIMAL, f"{tensor}:dtype", "complex64"))),
        "unknown_variant_dtype": Case(
            error, dump(changed(MINIMAL, "variants:fp32:dtype", "int4")), schema=False
        ),
        "tensor_without_name": Case(
            error, dump(changed(MINIMAL, f"{tensor}:name", "")), schema=False
        ),
        "tensor_twice": Case(
            "ManifestDuplicateError", dump(changed(MINIMAL, f"{GRAPH}:inputs", twice)), schema=False
        ),
    }


def models() -> dict[str, Case]:
    """Fields of the model that cannot be of one model."""
    t, vae = "model:transformer", "model:vae"
    cases = {
        "patches_of_four_frames": changed(COMPLETE, f"{t}:patch_size", [4, 2, 2]),
        "other_out_channels": changed(COMPLETE, f"{t}:out_channels", 32),
        "other_in_channels": changed(COMPLETE, f"{t}:in_channels", (1 << 53) - 1),
        "other_latent_channels": changed(COMPLETE, f"{vae}:latent_channels", 4),
        "mean_of_three_channels": changed(COMPLETE, f"{vae}:latents_mean", [0.0] * 3),
        "deviation_of_three_channels": changed(COMPLETE, f"{vae}:latents_std", [1.0] * 3),
        "temporal_stride_1": changed(COMPLETE, f"{vae}:temporal_stride", 1),
        "spatial_stride_32": changed(COMPLETE, f"{vae}:spatial_stride", 32),
        "dim_mult_of_one_level": changed(COMPLETE, f"{vae}:dim_mult", [1]),
        "upsample_factor_of_two_stages": changed(WINDOWS, f"{vae}:upsample_factor", [2, 2]),
        "upsample_factor_that_does_not_divide": changed(
            WINDOWS, f"{vae}:upsample_factor", [2, 2, 3]
        ),
        "upsampling_of_another_stride": changed(
            WINDOWS, f"{vae}:upsample_type", ["spatial", "spatial", "spatiotemporal"]
        ),
        "downsampling_of_channels_that_do_not_divide": changed(
            WINDOWS, f"{vae}:block_out_channels", [64, 64, 64, 60]
        ),
        "pad_token_outside_of_the_vocabulary": changed(
            COMPLETE, "model:text:pad_token_id", (1 << 53) - 1
        ),
        "bos_token_outside_of_the_vocabulary": changed(COMPLETE, "model:text:bos_token_id", 256),
        "causal_without_streaming": changed(COMPLETE, f"{t}:causal", True),
        "streaming_without_causal": changed(COMPLETE, "model:streaming", STREAMING),
        "streaming_without_timesteps": changed(
            CAUSAL, "model:streaming", {**STREAMING, "timesteps": []}
        ),
        "renoise_without_streaming": changed(COMPLETE, "model:sampling", {"solver": "renoise"}),
        "text_encoder_of_another_width": changed(
            changed(COMPLETE, "model:text:hidden_size", 32),
            "variants:fp32:graphs:text_encoder:outputs:0:shape:2",
            32,
        ),
    }
    return {
        name: Case("ManifestValueError", dump(value), schema=False) for name, value in cases.items()
    }


def coherence() -> dict[str, Case]:
    """Graphs that are not the model's: their number, their names, their inputs and outputs."""
    graphs, t = "variants:fp32:graphs", "model:transformer"
    downsampled_in_space_only = {**VAE, "temporal_stride": 1, "temporal_downsample": [False]}
    absent = {
        "one_layer_of_two": changed(COMPLETE, f"{t}:num_layers", 1),
        "ten_million_layers": changed(COMPLETE, f"{t}:num_layers", 10_000_000),
        "a_billion_layers": changed(COMPLETE, f"{t}:num_layers", 1_000_000_000),
        "block_missing": without(COMPLETE, f"{graphs}:block_01"),
        "first_block_missing": changed(
            without(COMPLETE, f"{graphs}:block_00"),
            f"{graphs}:block_02",
            transformer_graphs()["block_00"],
        ),
        "block_with_three_digits": changed(
            without(COMPLETE, f"{graphs}:block_00"),
            f"{graphs}:block_000",
            transformer_graphs()["block_00"],
        ),
        "graphs_of_a_decoder_alone": changed(COMPLETE, DECODER, None),
        "wan_called_dcae": changed(
            COMPLETE,
            "model:vae",
            {"kind": "dcae", "latent_channels": 16, "temporal_stride": 2, "spatial_stride": 2},
        ),
    }
    sizes = {
        f"{name}_of_no_graph": changed(COMPLETE, f"model:{field}", value)
        for name, field, value in (
            ("heads", "transformer:num_heads", 1 << 40),
            ("head_dim", "transformer:head_dim", 6),
            ("cross_heads", "transformer:num_cross_heads", 4),
            ("cross_head_dim", "transformer:cross_head_dim", 6),
            ("max_tokens", "text:max_tokens", 10_000_000),
            ("base_dim", "vae:base_dim", 8),
            ("res_blocks", "vae:num_res_blocks", 1_000_000_000_000_000),
        )
    }
    spoilt = {
        **sizes,
        "heads_split_otherwise": changed(
            changed(COMPLETE, f"{t}:num_heads", 4), f"{t}:head_dim", 6
        ),
        "frames_of_another_stride": changed(COMPLETE, "model:vae", downsampled_in_space_only),
        "variant_of_another_dtype": changed(COMPLETE, "variants:fp32:dtype", "bfloat16"),
        "no_inputs": changed(COMPLETE, f"{graphs}:block_01:inputs", []),
        "no_outputs": changed(COMPLETE, f"{graphs}:prompt:outputs", []),
        "one_input_more": changed(
            COMPLETE, f"{graphs}:rope:inputs", [*transformer_graphs()["rope"]["inputs"], TOKENS]
        ),
        "input_renamed": changed(COMPLETE, f"{graphs}:solver:inputs:0:name", "latent"),
        "input_of_another_dtype": changed(
            COMPLETE, f"{graphs}:text_encoder:inputs:0:dtype", "int32"
        ),
        "input_of_another_rank": changed(COMPLETE, f"{graphs}:timestep:inputs:0:shape", ["batch"]),
        "dimension_fixed": changed(COMPLETE, f"{graphs}:patch_embed:inputs:0:shape:2", 5),
        "dimension_renamed": changed(COMPLETE, f"{graphs}:vae_encoder:inputs:0:shape:1", "rows"),
        "outputs_in_another_order": changed(
            COMPLETE, f"{graphs}:timestep:outputs", [EMBEDDING, MODULATION]
        ),
        "plan_without_inputs": changed(
            changed(PLANS, f"{PLAN_AT}:inputs", []), f"{PLAN_AT}:profile", {}
        ),
        "plan_of_other_outputs": changed(PLANS, f"{PLAN_AT}:outputs:0:shape:3", 48),
    }
    return {
        **{
            name: Case("ManifestReferenceError", dump(value), schema=False)
            for name, value in absent.items()
        },
        **{
            name: Case("ManifestShapeError", dump(value), schema=False)
            for name, value in spoilt.items()
        },
    }


def corpus() -> dict[str, bytes]:
    """Every file of the corpus by its path in this directory."""
    groups = (
        *(syntax, limits, versions, fields, values, paths),
        *(references, shapes, models, coherence),
    )
    invalid = {name: case for group in groups for name, case in group().items()}
    accepted = [
        {"file": f"valid/{name}.json", "verdict": "accept", "error": None, "schema": "accept"}
        for name in sorted(valid())
    ]
    refused = [
        {
            "file": f"invalid/{name}.json",
            "verdict": "refuse",
            "error": case.error,
            "schema": "refuse" if case.schema else "accept",
        }
        for name, case in sorted(invalid.items())
    ]
    return {
        **{f"valid/{name}.json": dump(value) for name, value in valid().items()},
        **{f"invalid/{name}.json": case.data for name, case in invalid.items()},
        "index.json": dump([*accepted, *refused]),
    }


def main() -> None:
    """Replace the corpus."""
    for old in (*HERE.glob("valid/*.json"), *HERE.glob("invalid/*.json")):
        old.unlink()
    for name, data in corpus().items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
