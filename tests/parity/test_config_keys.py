"""The tables of keys against the classes of diffusers, transformers and PEFT themselves."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLLTX2Video,
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)
from peft import LoraConfig
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from sana_rt.export import config_tables, tokenizer_settings
from sana_rt.export.config_keys import REQUIRED, NoEffect, Table

CLASSES: dict[type, Table] = {
    SanaVideoTransformer3DModel: config_tables.TRANSFORMER,
    AutoencoderKLWan: config_tables.WAN,
    AutoencoderKLLTX2Video: config_tables.LTX2,
    DPMSolverMultistepScheduler: config_tables.DPM_SOLVER,
    FlowMatchEulerDiscreteScheduler: config_tables.FLOW_EULER,
    SanaVideoPipeline: config_tables.PIPELINES[0],
    SanaImageToVideoPipeline: config_tables.PIPELINES[1],
    Gemma2Config: config_tables.GEMMA2,
    LoraConfig: config_tables.PEFT_LORA,
}
MODELS = {
    SanaVideoTransformer3DModel: {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": 8,
        "mlp_ratio": 2.0,
    },
    AutoencoderKLWan: {"base_dim": 4, "num_res_blocks": 1},
    Gemma2Config: {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "attn_implementation": "eager",
    },
}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def parameters(of: type) -> dict[str, Any]:
    """The arguments of a class and their defaults."""
    if of is LoraConfig:  # its signature hides what factories make
        return {each.name: getattr(of(), each.name) for each in dataclasses.fields(of)}
    found = inspect.signature(of).parameters
    return {name: each.default for name, each in found.items() if name != "self"}


@pytest.mark.parametrize("of", CLASSES, ids=lambda of: of.__name__)
def test_a_table_has_every_argument_of_its_class(of: type) -> None:
    """And no other, but for what configurations of transformers hold beside their arguments."""
    keys = CLASSES[of].keys.keys()
    if of is Gemma2Config:
        assert parameters(of).keys() <= keys
        assert keys == parameters(of).keys() | Gemma2Config().to_dict().keys()
    else:
        assert keys == parameters(of).keys()


def as_in_a_file(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("of", CLASSES, ids=lambda of: of.__name__)
def test_a_default_is_that_of_the_class(of: type) -> None:
    defaults = {
        key: (treatment.default, as_in_a_file(parameters(of)[key]))
        for key, treatment in CLASSES[of].keys.items()
        if getattr(treatment, "default", REQUIRED) is not REQUIRED and key in parameters(of)
    }
    if of in (SanaVideoPipeline, SanaImageToVideoPipeline):
        return  # a part that an index does not name is absent
    assert defaults
    assert all(ours == theirs for ours, theirs in defaults.values()), defaults


@pytest.mark.parametrize("of", CLASSES, ids=lambda of: of.__name__)
def test_a_saved_file_is_known(of: type, tmp_path: Path) -> None:
    if of in (SanaVideoPipeline, SanaImageToVideoPipeline):
        of(**dict.fromkeys(parameters(of))).save_pretrained(tmp_path)
    elif of is AutoencoderKLLTX2Video:  # only its sizes are read, and it is large
        with torch.device("meta"):
            of().save_config(tmp_path)
    else:
        model = of(**MODELS.get(of, {}))
        model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.json")
    table = CLASSES[of]
    assert json.loads(file.read_text()).keys() <= {*table.keys, *table.beyond}


def unlike(of: type) -> list[str]:
    """The keys without effect of a class, as far as it takes them as arguments."""
    return [
        key
        for key, treatment in CLASSES[of].keys.items()
        if isinstance(treatment, NoEffect) and key in parameters(of)
    ]


CHANGES: dict[type, dict[str, Any]] = {
    DPMSolverMultistepScheduler: {
        "beta_start": 0.001,
        "beta_end": 0.05,
        "beta_schedule": "squaredcos_cap_v2",
        "trained_betas": [0.01] * 1000,
        "dynamic_thresholding_ratio": 0.5,
        "sample_max_value": 0.1,
        "lower_order_final": False,
        "euler_at_final": True,
        "lambda_min_clipped": -5.0,
        "variance_type": "learned",
        "timestep_spacing": "trailing",
        "steps_offset": 3,
        "rescale_betas_zero_snr": True,
        "use_dynamic_shifting": True,
        "time_shift_type": "linear",
    },
    FlowMatchEulerDiscreteScheduler: {
        "base_shift": 0.9,
        "max_shift": 3.0,
        "base_image_seq_len": 100,
        "max_image_seq_len": 9999,
        "time_shift_type": "linear",
    },
    SanaVideoTransformer3DModel: {
        "dropout": 0.5,
        "sample_size": 22,
        "interpolation_scale": 2,
        "guidance_embeds_scale": 7.0,
    },
    AutoencoderKLWan: {"dropout": 0.5},
    Gemma2Config: {
        "max_position_embeddings": 4,
        "initializer_range": 0.5,
        "use_cache": False,
        "eos_token_id": [5, 6],
        "tie_word_embeddings": False,
        "attention_dropout": 0.5,
        "final_logit_softcapping": None,
        "transformers_version": "4.42.4",
        "architectures": ["Gemma2ForCausalLM"],
        "output_hidden_states": True,
        "return_dict": False,
        "dtype": "bfloat16",
        "chunk_size_feed_forward": 1,
        "id2label": {0: "a"},
        "label2id": {"a": 0},
        "problem_type": "regression",
    },
}
SCHEDULERS: dict[type, dict[str, Any]] = {
    DPMSolverMultistepScheduler: {
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "flow_shift": 7.0,
    },
    FlowMatchEulerDiscreteScheduler: {"shift": 7.0},
}


def trajectory(scheduler: Any, count: int) -> Tensor:
    """Timesteps, and the latents of every step with a smooth stand-in for the network."""
    scheduler.set_timesteps(count)
    latents = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    passed = [scheduler.timesteps.float()]
    for timestep in scheduler.timesteps:
        velocity = torch.tanh(latents * (1 + timestep / 1000))
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        passed.append(latents.flatten())
    return torch.cat(passed)


@pytest.mark.parametrize("of", SCHEDULERS, ids=lambda of: of.__name__)
def test_a_scheduler_does_not_depend_on_keys_without_effect(of: Any) -> None:
    settings = SCHEDULERS[of]
    assert set(CHANGES[of]) == set(unlike(of))
    for count in (1, 4, 20):
        wanted = trajectory(of(**settings), count)
        for key, value in CHANGES[of].items():
            assert value != parameters(of)[key]
            changed = trajectory(of(**settings, **{key: value}), count)
            assert torch.equal(changed, wanted), key


@pytest.mark.parametrize("of", SCHEDULERS, ids=lambda of: of.__name__)
def test_a_scheduler_ignores_the_keys_of_the_other(of: Any) -> None:
    (other,) = SCHEDULERS.keys() - {of}
    own = {"_class_name": of.__name__} | SCHEDULERS[of]
    foreign = {key: each for key, each in parameters(other).items() if key not in parameters(of)}
    loaded = of.from_config(own | foreign)
    saved = json.loads(loaded.to_json_string()).keys()
    assert foreign.keys() <= saved <= {*CLASSES[of].keys, *CLASSES[of].beyond}
    assert torch.equal(trajectory(loaded, 6), trajectory(of(**SCHEDULERS[of]), 6))


def solver_type(name: str) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(**SCHEDULERS[DPMSolverMultistepScheduler], solver_type=name)


def test_other_names_of_the_solver_mean_the_same() -> None:
    wanted = trajectory(solver_type("midpoint"), 8)
    for name in ("logrho", "bh1", "bh2"):
        assert torch.equal(trajectory(solver_type(name), 8), wanted)
    assert not torch.equal(trajectory(solver_type("heun"), 8), wanted)


def output(of: type, changes: dict[str, Any]) -> Tensor:
    """What a small model of the class computes, with weights that do not depend on ``changes``."""
    generator = torch.Generator().manual_seed(0)
    made: Any = of(**MODELS[of] | changes)
    model = (Gemma2Model(made) if of is Gemma2Config else made).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    with torch.no_grad():
        if of is Gemma2Config:
            return model(torch.arange(12)[None])[0]
        if of is AutoencoderKLWan:
            latents = model.encode(torch.randn(1, 3, 5, 16, 16, generator=generator))
            return model.decode(latents.latent_dist.mode()).sample
        noise = torch.randn(1, 4, 2, 4, 4, generator=generator)
        states = torch.randn(1, 5, 8, generator=generator)
        return model(noise, states, torch.tensor([300])).sample


@pytest.mark.parametrize("of", MODELS, ids=lambda of: of.__name__)
def test_a_model_does_not_depend_on_keys_without_effect(of: type) -> None:
    assert set(CHANGES[of]) == set(unlike(of)) - {"model_type"}
    wanted = output(of, {})
    for key, value in CHANGES[of].items():
        assert torch.equal(output(of, {key: value}), wanted), key


TOKENIZER_CHANGES: dict[str, Any] = {
    "padding_side": "left",
    "model_max_length": 9,
    "max_length": 9,
    "stride": 2,
    "truncation_strategy": "only_second",
    "pad_to_multiple_of": 16,
    "pad_token_type_id": 3,
    "chat_template": "{{ messages }}",
    "clean_up_tokenization_spaces": True,
    "spaces_between_special_tokens": True,
    "legacy": False,
    "sp_model_kwargs": {"enable_sampling": True},
    "use_default_system_prompt": True,
    "backend": "tokenizers",
    "is_local": True,
    "local_files_only": True,
    "name_or_path": "a/b",
    "processor_class": "GemmaProcessor",
    "special_tokens_map_file": None,
    "tokenizer_file": None,
}


def test_a_tokenizer_does_not_depend_on_keys_without_effect(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    """Nor on tokens that ``tokenizer.json`` has; and what it writes itself is known."""
    keys = config_tables.TOKENIZER.keys
    ignored = {key for key, treatment in keys.items() if isinstance(treatment, NoEffect)}
    assert set(TOKENIZER_CHANGES) == ignored
    backend = Tokenizer.from_file(str(tokenizer_file))
    added = backend.get_added_tokens_decoder()
    tokens = {
        "bos_token": {"content": "<bos>", "normalized": False, "__type": "AddedToken"},
        "extra_special_tokens": ["<mask>"],
        "added_tokens_decoder": {
            str(number): {"content": token.content, "special": token.special, "lstrip": False}
            for number, token in added.items()
        },
    }
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    texts = ["a red  circle <eos> moving", "User Prompt: É 猫" * 20]
    ids = [backend.encode(text).ids[:40] for text in texts]
    wanted = [each + [0] * (40 - len(each)) for each in ids]
    changes = [{}, *({key: value} for key, value in (TOKENIZER_CHANGES | tokens).items())]
    for change in changes:
        config = {"tokenizer_class": "GemmaTokenizer"} | change
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer_settings.check(tmp_path / "tokenizer.json", backend)
        tokenizer = GemmaTokenizer.from_pretrained(tmp_path)
        tokenizer.padding_side = "right"  # as the pipelines do
        found = tokenizer(texts, padding="max_length", truncation=True, max_length=40).input_ids
        assert found == wanted, change
    tokenizer.save_pretrained(tmp_path)
    tokenizer_settings.check(tmp_path / "tokenizer.json", backend)
