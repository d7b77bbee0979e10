"""Every key of a configuration is honoured or refused; no value ends in a traceback."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sana_rt.errors import CheckpointFormatError
from sana_rt.export import config_tables
from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.export.config_keys import Follows, MustBe, NoEffect, Table, Used
from sana_rt.export.config_page import page
from sana_rt.export.configs import EXTRAS_NAME, read_spec
from sana_rt.export.seeded import SMALL

ROOT = Path(__file__).parents[3]

FILES = {
    "transformer/config.json": config_tables.TRANSFORMER,
    "vae/config.json": config_tables.WAN,
    "text_encoder/config.json": config_tables.GEMMA2,
    "scheduler/scheduler_config.json": config_tables.DPM_SOLVER,
    "tokenizer/tokenizer_config.json": config_tables.TOKENIZER,
    "model_index.json": config_tables.PIPELINES[0],
}
CASES = [(file, key) for file, table in FILES.items() for key in {**table.keys, **table.beyond}]
OTHERS = (None, True, False, 0, 1, 7, -1, 2.5, math.nan, "other", [], [0], [None, "x"], {}, 2**53)
INVALID = ("x", {}, [{}], math.nan, math.inf, -1, -0.5, 2**53, 10**400, [[[[]]]])


@pytest.fixture
def folder(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose configuration can be changed; its weights are links."""

    def copy(source: str, target: str) -> None:
        make = os.symlink if source.endswith(".safetensors") else shutil.copy
        make(source, target)

    return shutil.copytree(small_checkpoint, tmp_path / "checkpoint", copy_function=copy)


def edit(path: Path, **changes: Any) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | changes))


def refusal(folder: Path) -> str | None:
    try:
        open_checkpoint(folder)
    except CheckpointFormatError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("file", "key"), CASES, ids=[f"{file}:{key}" for file, key in CASES])
def test_a_key_is_honoured_or_refused(file: str, key: str, small_checkpoint: Path) -> None:
    table = FILES[file]
    config = json.loads((small_checkpoint / file).read_text())
    treatment = {**table.keys, **table.beyond}[key]
    values = table.checked(file, config)

    def refusal(value: object) -> str:
        try:
            changed = table.checked(file, config | {key: value})
        except CheckpointFormatError as error:
            return str(error)
        assert {each for each in values if values[each] != changed[each]} <= {key}
        return ""

    said = [refusal(value) for value in (INVALID if isinstance(treatment, Used) else OTHERS)]
    assert all(each.startswith(f"{file} sets {key} to ") for each in said if each)
    match treatment:
        case NoEffect():
            assert not any(said)
        case MustBe() | Follows():
            assert said.count("") <= 2, "null, and the value itself"
        case Used():
            assert all(said)


PARTS = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")
TOKENS: list[dict[str, Any]] = [
    {"truncation_side": "left"},
    {"split_special_tokens": True},
    {"add_bos_token": False},
    {"add_eos_token": True},
    {"tokenizer_class": "T5TokenizerFast"},
    {"mask_token": "moving"},
    {"extra_special_tokens": ["red"]},
    {"extra_special_tokens": {"image_token": "red"}},
    {"additional_special_tokens": [{"content": "red", "__type": "AddedToken"}]},
    {"added_tokens_decoder": {"600": {"content": "purple", "special": False}}},
    {"added_tokens_decoder": {"1": {"content": "<eos>", "rstrip": True}}},
    {"added_tokens_decoder": {"3": {"content": "<eos>"}}},
    {"added_tokens_decoder": {"first": {"content": "<eos>"}}},
]
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("scheduler/scheduler_config.json", {"solver_order": 1}),
    ("scheduler/scheduler_config.json", {"solver_order": 3}),
    ("scheduler/scheduler_config.json", {"solver_type": "heun"}),
    ("scheduler/scheduler_config.json", {"algorithm_type": "sde-dpmsolver++"}),
    ("scheduler/scheduler_config.json", {"use_flow_sigmas": False}),
    ("scheduler/scheduler_config.json", {"final_sigmas_type": "sigma_min"}),
    ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}),
    ("transformer/config.json", {"out_channels": 32}),
    ("transformer/config.json", {"patch_size": [2, 2, 2]}),
    ("transformer/config.json", {"patch_size": [1, 2]}),
    ("transformer/config.json", {"attention_head_dim": 27}),
    ("transformer/config.json", {"mlp_ratio": 1e-9}),
    ("transformer/config.json", {"qk_norm": None}),
    ("transformer/config.json", {"num_layers": 10**9}),
    ("transformer/config.json", {"cross_attention_dim": 96}),
    ("text_encoder/config.json", {"layer_types": ["full_attention"] * 2}),
    ("text_encoder/config.json", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("text_encoder/config.json", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    (
        "text_encoder/config.json",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    ("text_encoder/config.json", {"rope_parameters": {"rope_type": "yarn"}}),
    ("text_encoder/config.json", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("text_encoder/config.json", {"rope_parameters": 3}),
    ("text_encoder/config.json", {"num_key_value_heads": 3}),
    ("text_encoder/config.json", {"head_dim": 15}),
    ("text_encoder/config.json", {"pad_token_id": 10**6}),
    ("text_encoder/config.json", {"use_bidirectional_attention": True}),
    ("vae/config.json", {"temperal_downsample": [True] * 100}),
    ("vae/config.json", {"temperal_downsample": [False, True]}),
    ("vae/config.json", {"latents_mean": [0.0]}),
    ("vae/config.json", {"scale_factor_spatial": 16}),
    ("model_index.json", {"_class_name": "FluxPipeline"}),
    ("model_index.json", {"text_encoder": ["transformers", "Gemma2ForCausalLM"]}),
    ("model_index.json", {"transformer": ["diffusers", "SanaVideoCausalTransformer3DModel"]}),
    ("model_index.json", {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}),
    ("model_index.json", {"_class_name": "LongSanaVideoPipeline"}),
    ("model_index.json", {"_class_name": "SanaImageToVideoPipeline"}),
    ("model_index.json", {"tokenizer": ["transformers", "T5TokenizerFast"]}),
    *(("model_index.json", {part: [None, None]}) for part in PARTS),
    ("transformer/config.json", {"caption_channels": 48}),
    ("text_encoder/config.json", {"hidden_size": 40}),
    *(("tokenizer/tokenizer_config.json", changes) for changes in TOKENS),
    ("tokenizer/special_tokens_map.json", {"additional_special_tokens": ["moving"]}),
    ("tokenizer/special_tokens_map.json", {"bos_token": {"content": "<bos>", "lstrip": True}}),
    ("tokenizer/added_tokens.json", {"moving": 700}),
    ("tokenizer/added_tokens.json", {"<bos>": 1}),
    ("tokenizer/added_tokens.json", {"<bos>": "two"}),
    (EXTRAS_NAME, {"max_tokens": 0}),
]


@pytest.mark.parametrize(
    ("file", "changes"), SETTINGS, ids=[f"{file}-{changes}"[:80] for file, changes in SETTINGS]
)
def test_a_setting_that_is_not_implemented_is_refused(
    file: str, changes: dict[str, Any], folder: Path
) -> None:
    edit(folder / file, **changes)
    assert refusal(folder)


@pytest.mark.parametrize("file", [*FILES, EXTRAS_NAME])
def test_an_unknown_key_is_refused_by_name(file: str, folder: Path) -> None:
    edit(folder / file, a_new_setting=1)
    assert "a_new_setting" in (refusal(folder) or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"shift_terminal": 0.1},
        {"use_karras_sigmas": True},
        {"invert_sigmas": True},
        {"num_train_timesteps": 500},
        {"use_dynamic_shifting": True},
        {"stochastic_sampling": True},
        {"shift": 0},
        {"shift": 0.58},
        {"shift": 1e17},
    ],
    ids=str,
)
def test_flow_euler_is_the_plain_one(changes: dict[str, Any]) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    assert config_tables.FLOW_EULER.checked("file", config)["shift"] == 3.0
    with pytest.raises(CheckpointFormatError, match=next(iter(changes))):
        config_tables.FLOW_EULER.checked("file", config | changes)


def test_a_scheduler_that_is_named_and_missing_is_refused(folder: Path) -> None:
    """Another would take its place; without an index, the preset's is what is meant."""
    shutil.rmtree(folder / "scheduler")
    assert "names the scheduler DPMSolverMultistepScheduler" in (refusal(folder) or "")
    (folder / "model_index.json").unlink()
    assert open_checkpoint(folder).spec == SMALL


STEPS: dict[str, Any] = {
    "normalizer": {"type": "Prepend", "prepend": "▁"},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
}


@pytest.mark.parametrize("step", STEPS)
def test_steps_that_a_class_replaces_are_refused(step: str, folder: Path) -> None:
    edit(folder / "tokenizer/tokenizer.json", **{step: STEPS[step]})
    assert f"The {step} of" in (refusal(folder) or "")
    edit(folder / "tokenizer/tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    edit(folder / "tokenizer/special_tokens_map.json", bos_token="<bos>")
    assert open_checkpoint(folder).tokenizer


def test_a_default_of_the_class_counts(folder: Path) -> None:
    """A file without ``use_flow_sigmas`` means false, and without ``flow_shift`` means 1."""
    path = folder / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    del config["use_flow_sigmas"]
    path.write_text(json.dumps(config))
    assert "does not set use_flow_sigmas, which is then False" in (refusal(folder) or "")
    config |= {"use_flow_sigmas": True}
    del config["flow_shift"]
    path.write_text(json.dumps(config))
    assert "dpmpp_2m with flow_shift 1, as" in (refusal(folder) or "")
    (folder / EXTRAS_NAME).unlink()
    assert open_checkpoint(folder).spec.sampling.flow_shift == 1.0


@pytest.mark.parametrize("theta", [5000.0, 20000])
def test_the_rotary_base_is_read_by_both_names(theta: float, folder: Path) -> None:
    path = folder / "text_encoder/config.json"
    edit(path, rope_theta=theta)
    assert open_checkpoint(folder).spec.text.rope_theta == theta
    edit(path, rope_theta=1.0, rope_parameters={"rope_type": "default", "rope_theta": theta})
    assert open_checkpoint(folder).spec.text.rope_theta == theta
    edit(path, rope_theta=theta, rope_parameters={"rope_type": "default"})
    assert open_checkpoint(folder).spec.text.rope_theta == theta


MALFORMED: dict[str, Callable[[dict[str, Any]], str]] = {
    "deep": lambda _: '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep value": lambda config: json.dumps(config)[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}",
    "digits": lambda config: json.dumps(config)[:-1] + ', "x": ' + "9" * 5000 + "}",
    "twice": lambda config: json.dumps(config)[:-1] + ", " + json.dumps(config)[1:],
    "large": lambda config: json.dumps(config | {"x": "y" * (65 << 20)}),
    "not UTF-8": lambda _: '{"a": "\udcff"}',
    "half a character": lambda config: json.dumps(dict.fromkeys(config, "\ud800")),
    "a number": lambda _: "1",
    "empty": lambda _: "",
    "all null": lambda config: json.dumps(dict.fromkeys(config)),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_file_is_refused(what: str, file: str, folder: Path) -> None:
    path = folder / file
    text = MALFORMED[what](json.loads(path.read_text()))
    path.write_text(text, errors="surrogateescape")
    assert len(refusal(folder) or "") in range(1, 1500)


def test_a_preset_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    content = msgspec.to_builtins(SMALL)
    content["transformer"]["num_layers"] = 10**9
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(CheckpointFormatError, match="1000 layers"):
        read_spec(path)


def test_what_diffusers_and_the_seeded_checkpoint_write_is_read(folder: Path) -> None:
    assert open_checkpoint(folder).spec == SMALL
    assert open_checkpoint(ROOT / "examples/shapes/checkpoints")


def test_the_documentation_lists_every_key() -> None:
    assert (ROOT / "docs/config-keys.md").read_text() == page(), (
        "python -m sana_rt.export.config_page > docs/config-keys.md"
    )


def test_tables_differ_in_what_they_name() -> None:
    tables: list[Table] = [*FILES.values(), config_tables.FLOW_EULER]
    assert len({table.identity[1] for table in tables}) == len(tables)
    for table in tables:
        assert not table.keys.keys() & table.beyond.keys()
