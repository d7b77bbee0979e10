"""From prompt to hidden states against diffusers' ``SanaVideoPipeline.encode_prompt``."""

from __future__ import annotations

import copy
import inspect
import json
import math
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline, SanaVideoPipeline, SanaVideoTransformer3DModel
from diffusers.pipelines.sana_video import pipeline_sana_video
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from sana_rt.export import instructions
from sana_rt.export.modules.gemma2 import Gemma2Encoder
from sana_rt.model_spec import TextSpec
from sana_rt.runtime.text import (
    PromptTokenizer,
    PromptTruncatedWarning,
    TokenizedPrompt,
    prompt_text,
    select,
)

# float32 on both sides, at two lengths: the bound of the encoder's own parity test.
TOLERANCE = 1e-4

MAX_TOKENS = 40
HIDDEN = 32
WIDTH, HEAD_DIM = 24, 12  # of the transformer
MOTION = " motion score: 30."
PROMPTS = {
    "one word": "cat",
    "capitals and spaces": "  A small, fluffy White cat\tsleeping \n",
    "empty": "",
    "beyond ascii": "É, a 猫 on 🐈 and ½ a <eos> token",
    "just fits": "cat " * 29 + "x",
    "too long": "A diverse crowd of people in colorful clothing, " * 12,
}


def spec(instruction: str) -> TextSpec:
    return TextSpec(
        vocab_size=800,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16.0,
        max_tokens=MAX_TOKENS,
        instruction=instruction,
    )


@pytest.fixture(scope="module")
def text_encoder() -> Gemma2Model:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    sizes = spec("")
    return Gemma2Model(
        Gemma2Config(
            vocab_size=sizes.vocab_size,
            hidden_size=HIDDEN,
            intermediate_size=sizes.intermediate_size,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            query_pre_attn_scalar=int(sizes.query_pre_attn_scalar),
            initializer_range=0.5,
            attn_implementation="eager",
        )
    ).eval()


@pytest.fixture(scope="module")
def their_tokenizer(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("gemma")
    shutil.copy(tokenizer_file, folder)
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    config = {"tokenizer_class": "GemmaTokenizer", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return GemmaTokenizer.from_pretrained(folder)


@dataclass
class Reference:
    """diffusers' pipeline, and what it gave its text encoder."""

    pipeline: SanaVideoPipeline
    calls: list[tuple[Tensor, Tensor]]

    @torch.inference_mode()
    def encode(self, prompt: str, negative_prompt: str, instruction: str) -> list[Tensor]:
        self.calls.clear()
        return self.pipeline.encode_prompt(
            prompt,
            negative_prompt=negative_prompt,
            device=torch.device("cpu"),
            max_sequence_length=MAX_TOKENS,
            complex_human_instruction=instruction.split("\n") if instruction else None,
        )


@pytest.fixture(scope="module")
def reference(text_encoder, their_tokenizer) -> Reference:
    encoder = copy.deepcopy(text_encoder)
    calls: list[tuple[Tensor, Tensor]] = []
    encoder.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args[0], kwargs["attention_mask"])),
        with_kwargs=True,
    )
    parts = dict.fromkeys(("vae", "transformer", "scheduler"))
    return Reference(SanaVideoPipeline(their_tokenizer, encoder, **parts), calls)


@dataclass
class Ours:
    tokenizer: PromptTokenizer
    encoder: Gemma2Encoder

    def tokens(self, text: str, *, instruction: bool) -> TokenizedPrompt:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptTruncatedWarning)
            return self.tokenizer.encode(text, instruction=instruction)

    @torch.inference_mode()
    def hidden_states(self, prompt: TokenizedPrompt) -> np.ndarray:
        mask = torch.from_numpy(prompt.attention_mask)
        return self.encoder(torch.from_numpy(prompt.input_ids), mask).numpy()


def ours(tokenizer_file: Path, text_encoder: Gemma2Model, instruction: str) -> Ours:
    encoder = Gemma2Encoder(spec(instruction)).eval()
    encoder.load_state_dict(text_encoder.state_dict())
    return Ours(PromptTokenizer.from_file(tokenizer_file, spec(instruction)), encoder)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("name", instructions.INSTRUCTIONS)
def test_tokens_masks_and_hidden_states(reference, tokenizer_file, text_encoder, name, prompt):
    """Positive with the instruction, negative without: the same tokens, and the same result."""
    instruction = instructions.INSTRUCTIONS[name]
    mine = ours(tokenizer_file, text_encoder, instruction)
    # the caller of diffusers adds the motion score; diffusers strips prompt and score together
    wanted = reference.encode(prompt.strip() + MOTION, prompt, instruction)
    positive = prompt_text(prompt, motion_score=30, lowercase=True)
    texts = (positive, True), (prompt_text(prompt, lowercase=True), False)
    for (text, instructed), call, embeds, mask in zip(
        texts, reference.calls, wanted[::2], wanted[1::2], strict=True
    ):
        tokens = mine.tokens(text, instruction=instructed)
        ids, valid = call
        assert ids.shape[1] == mine.tokenizer.max_length(instruction=instructed)
        assert tokens.input_ids.tolist() == [ids[valid.bool()].tolist()]
        selected, attention_mask = select(mine.hidden_states(tokens), tokens)
        assert attention_mask.tolist() == mask.tolist()
        keep = mask.bool()
        difference = (torch.from_numpy(selected)[keep] - embeds[keep]).abs().max()
        assert difference <= TOLERANCE * embeds[keep].abs().max()


@settings(deadline=None, max_examples=200)
@given(prompt=st.text(st.characters(codec="utf-8"), max_size=120), instruction=st.booleans())
def test_any_text_gives_the_tokens_transformers_gives(
    their_tokenizer, tokenizer_file, prompt, instruction
):
    tokenizer = PromptTokenizer.from_file(tokenizer_file, spec(instructions.ORIGINAL))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncatedWarning)
        tokens = tokenizer.encode(prompt, instruction=instruction)
    wanted = their_tokenizer(
        instructions.ORIGINAL * instruction + prompt,
        max_length=tokenizer.max_length(instruction=instruction),
        truncation=True,
    )
    assert tokens.input_ids[0].tolist() == wanted["input_ids"]


@pytest.fixture(scope="module")
def transformer() -> SanaVideoTransformer3DModel:
    torch.manual_seed(4)
    model = SanaVideoTransformer3DModel(
        num_attention_heads=WIDTH // HEAD_DIM,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        num_cross_attention_heads=WIDTH // HEAD_DIM,
        cross_attention_head_dim=HEAD_DIM,
        cross_attention_dim=WIDTH,
        caption_channels=HIDDEN,
        mlp_ratio=2.0,
        sample_size=8,
        patch_size=(1, 2, 2),
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


# Logits are q.k / sqrt(d) with |q|, |k| <= sqrt(D) weight, so two of them differ by at most
# 2 D weight^2 / sqrt(d); below 10000 - 104 a padded position's exp() is 0 in float32.
LARGEST_NORM_WEIGHT = math.sqrt((10000 - 104) * math.sqrt(HEAD_DIM) / (2 * WIDTH))


@pytest.mark.parametrize("norm_weight", [1.0, LARGEST_NORM_WEIGHT])
@torch.inference_mode()
def test_zeros_in_place_of_padding_change_no_bit(reference, transformer, norm_weight):
    """What stands at padded positions has weight exactly 0 in diffusers' own transformer."""
    embeds, mask, *_ = reference.encode("a cat", "", instructions.ORIGINAL)
    for block in transformer.transformer_blocks:
        block.attn2.norm_q.weight.fill_(norm_weight)
        block.attn2.norm_k.weight.fill_(norm_weight)

    def velocity(states: Tensor, attention_mask: Tensor) -> Tensor:
        torch.manual_seed(0)
        latents = torch.randn(1, 16, 2, 8, 8)
        time = torch.tensor([500])
        return transformer(latents, states, time, encoder_attention_mask=attention_mask).sample

    assert 0 < mask.sum() < mask.numel()
    zeroed = embeds * mask[..., None]
    assert not torch.equal(zeroed, embeds)
    wanted = velocity(embeds, mask)
    assert torch.isfinite(wanted).all()
    assert torch.equal(velocity(zeroed, mask), wanted)
    everything = torch.ones_like(mask)
    assert not torch.equal(velocity(zeroed, everything), velocity(embeds, everything))


def test_instructions_are_the_published_ones():
    """diffusers' image pipeline carries the original text with other quotation marks."""

    def default(pipeline: type) -> str:
        signature = inspect.signature(pipeline.__call__)
        return "\n".join(signature.parameters["complex_human_instruction"].default)

    assert default(SanaVideoPipeline) == instructions.DIFFUSERS
    original = default(SanaPipeline).replace("'Enhanced prompt'", '"Enhanced prompt"')
    assert original == instructions.ORIGINAL


def test_the_negative_prompt_is_the_published_one():
    assert f'"{instructions.NEGATIVE_PROMPT}"' in pipeline_sana_video.EXAMPLE_DOC_STRING
