"""Write the corpus of manifests: ``python tests/data/manifests/make.py``.

A valid manifest states what readers must accept. An invalid one is ``minimal.json`` or
``plans.json`` with one change and is named after it; ``index.json`` says which error each
raises, and whether the JSON Schema refuses it too. Readers in any language use the same corpus.
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


def dump(value: Json) -> bytes:
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
        "passes": 12,
    },
}
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
    quantized = {**FP32, "dtype": "bfloat16", "quantization": {**QUANTIZED, "form": "device"}}
    other_source = changed(FP32, "source", {**FP32["source"], "sha256": HASH[::-1]})
    every_dtype = [{"name": f"x_{name}", "dtype": name, "shape": []} for name in DTYPES]
    streaming = {"chunk_frames": 10, "timesteps": [1000, 960.0, 889, 727.0], "flow_shift": 7.0}
    tokenizer = [*MINIMAL["files"], {**FILE, "path": "tokenizer.json"}]
    return {
        "minimal": MINIMAL,
        "plans": PLANS,
        "decoder": DECODES,
        "another_autoencoder": changed(
            MINIMAL, "model:vae", {**MINIMAL["model"]["vae"], "kind": "ltx2"}
        ),
        "verified": changed(MINIMAL, f"{GRAPH}:verification", verification),
        "two_variants": changed(MINIMAL, "variants:nvfp4-paper.v2", quantized),
        "two_checkpoints": changed(MINIMAL, "variants:fp32-lora", other_source),
        "quantized": changed(MINIMAL, "variants:fp32:quantization", QUANTIZED),
        "quantized_without_calibration": changed(
            MINIMAL, "variants:fp32:quantization", without(QUANTIZED, "calibration")
        ),
        "plan_of_quantized": changed(PLANS, f"{PLAN_AT}:built_from:quantization", QUANTIZED),
        "every_dtype": changed(MINIMAL, f"{GRAPH}:inputs", every_dtype),
        "streaming": changed(MINIMAL, "model:streaming", streaming),
        "tokenizer": changed(changed(MINIMAL, "files", tokenizer), "tokenizer", "tokenizer.json"),
        "text_in_any_language": changed(MINIMAL, "model:text:instruction", "提示词：\n🎬 "),
        "shared_weights": changed(
            MINIMAL, "variants:fp32:graphs:timestep_again", GRAPHS["timestep"]
        ),
        "file_no_graph_uses": changed(WITH_PLAN_FILE, "files:2:path", "LICENSE"),
        "longest_path": changed(WITH_PLAN_FILE, "files:2:path", "a/" * 127 + "b"),
        "empty_file": changed(WITH_PLAN_FILE, "files:2:bytes", 0),
        "largest_file": changed(WITH_PLAN_FILE, "files:2:bytes", 1 << 40),
        "most_dimensions": changed(MINIMAL, f"{GRAPH}:inputs:0:shape", ["batch", *range(7)]),
        "largest_dimension": changed(MINIMAL, f"{GRAPH}:inputs:0:shape", [(1 << 31) - 1]),
        "null_for_absent": changed(MINIMAL, "tokenizer", None),
    }


def tensor(name: str, dtype: str, *shape: str | int) -> Json:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def decoder_graph(*, frames: int, caches: int) -> Json:
    """A decoder of which each call takes two latent frames, sees one more, and hands on three."""
    latents = tensor("latents", "float32", "batch", 16, 3, "latent_height", "latent_width")
    handed = [f"cache_{index:02d}" for index in range(3)]
    return {
        **GRAPHS["timestep"],
        "inputs": [latents, *(tensor(name, "float32", 4) for name in handed[:caches])],
        "outputs": [
            tensor("frames", "uint8", "batch", frames, "height", "width", 3),
            *(tensor(f"{name}_out", "float32", 4) for name in handed),
        ],
    }


DECODER = "variants:fp32:decoder"
DECODES: Json = changed(
    changed(
        MINIMAL,
        DECODER,
        {
            "latent_frames": 2,
            "frames": 8,
            "first_latent_frames": 2,
            "first_frames": 5,
            "lookahead": 1,
            "caches": 3,
        },
    ),
    "variants:fp32:graphs",
    {
        **GRAPHS,
        "vae_decoder_first": decoder_graph(frames=5, caches=0),
        "vae_decoder": decoder_graph(frames=8, caches=3),
    },
)


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
        "decoder_that_takes_nothing": Case(
            error, dump(changed(DECODES, f"{DECODER}:latent_frames", 0))
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
            error, dump(without(DECODES, "variants:fp32:graphs:vae_decoder_first")), schema=False
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
                error, dump(changed(DECODES, f"{DECODER}:{field}", 4)), schema=False
            )
            for field in DECODES["variants"]["fp32"]["decoder"]
        },
        "decoder_of_no_frames": Case(
            error,
            dump(without(DECODES, "variants:fp32:graphs:vae_decoder:outputs:0")),
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


def corpus() -> dict[str, bytes]:
    """Every file of the corpus by its path in this directory."""
    groups = (syntax, limits, versions, fields, values, paths, references, shapes)
    invalid = {name: case for group in groups for name, case in group().items()}
    index = {
        name: {"error": case.error, "schema_refuses": case.schema}
        for name, case in sorted(invalid.items())
    }
    return {
        **{f"valid/{name}.json": dump(value) for name, value in valid().items()},
        **{f"invalid/{name}.json": case.data for name, case in invalid.items()},
        "index.json": dump(index),
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
