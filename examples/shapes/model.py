"""The small SANA-Video: its sizes, its random weights, and its place on disk."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import torch
from diffusers import (
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)
from examples.shapes import to_original, wan, world
from examples.shapes.tokenizer import MAX_TOKENS, VOCABULARY
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from sana_rt.export import autoencoders
from sana_rt.export.checkpoint import open_checkpoint
from sana_rt.export.configs import EXTRAS_NAME, Extras
from sana_rt.export.modules.gemma2 import Gemma2Encoder
from sana_rt.export.modules.transformer import Transformer
from sana_rt.model_spec import ModelSpec, SamplingSpec, StreamingSpec, TextSpec, TransformerSpec

TEXT = TextSpec(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=192,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    query_pre_attn_scalar=32.0,
    max_tokens=MAX_TOKENS,
)
TRANSFORMER = TransformerSpec(
    in_channels=wan.Z_DIM,
    out_channels=wan.Z_DIM,
    patch_size=(1, 2, 2),
    num_layers=6,
    num_heads=4,
    head_dim=28,
    num_cross_heads=4,
    cross_head_dim=28,
    caption_channels=TEXT.hidden_size,
    ffn_dim=256,
)
SAMPLING = SamplingSpec(
    num_inference_steps=20,
    guidance_scale=4.0,
    flow_shift=3.0,
    height=world.SIZE,
    width=world.SIZE,
    num_frames=world.NUM_FRAMES,
    fps=world.FPS,
    motion_score=None,
)
CAUSAL = msgspec.structs.replace(TRANSFORMER, causal=True, attention_eps=1e-8)
STREAMING = StreamingSpec(chunk_frames=4)  # and LongSANA's timesteps
CAUSAL_SAMPLING = msgspec.structs.replace(
    SAMPLING, solver="renoise", num_inference_steps=len(STREAMING.timesteps), guidance_scale=1.0
)
CHUNK = STREAMING.chunk_frames
LATENT_FRAMES = CHUNK + 1  # of a clip, and of the first chunk of a long one
CAUSAL_FOLDER = "causal"


class Model(nn.Module):
    """The transformer and the text encoder it is trained with."""

    def __init__(self, spec: TransformerSpec = TRANSFORMER) -> None:
        super().__init__()
        self.transformer = Transformer(spec)
        self.text_encoder = Gemma2Encoder(TEXT)
        _initialise(self.transformer, self.text_encoder)


def load(folder: Path, spec: TransformerSpec = TRANSFORMER) -> Model:
    """The trained model in float32, from a folder in diffusers' layout."""
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return _model(folder, spec, weights)


def _model(folder: Path, spec: TransformerSpec, transformer: dict[str, torch.Tensor]) -> Model:
    """The transformer with these weights, and the text encoder of ``folder``."""
    model = Model(spec)
    model.transformer.load_state_dict(transformer)
    model.text_encoder.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"))
    return model


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The trained autoencoder in float32, ready for whole clips."""
    vae = AutoencoderKLWan.from_pretrained(folder, dtype=torch.float32)
    return wan.whole_clip(vae.eval().requires_grad_(False))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, as transformers loads it."""
    return AutoTokenizer.from_pretrained(folder)


def save(folder: Path, model: Model, vae: Path, tokenizer: Path) -> None:
    """Write what ``SanaVideoPipeline.from_pretrained`` and ``sana-rt export`` read, in float16."""
    transformer = SanaVideoTransformer3DModel(**_transformer_config())
    transformer.load_state_dict(model.transformer.state_dict())
    text_encoder = Gemma2Model(_text_config())
    text_encoder.load_state_dict(model.text_encoder.state_dict())
    scheduler = DPMSolverMultistepScheduler(
        flow_shift=SAMPLING.flow_shift, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    SanaVideoPipeline(
        tokenizer=load_tokenizer(tokenizer),
        text_encoder=text_encoder.half(),
        vae=AutoencoderKLWan.from_pretrained(vae, dtype=torch.float16),
        transformer=transformer.half(),
        scheduler=scheduler,
    ).save_pretrained(folder)
    _forget_origin(folder / "vae" / "config.json")
    extras = Extras("shapes", SAMPLING, None, TEXT.max_tokens, TEXT.instruction)
    text = msgspec.json.format(msgspec.json.encode(extras), indent=2)
    (folder / EXTRAS_NAME).write_bytes(text + b"\n")


def _forget_origin(path: Path) -> None:
    """Remove the folder that diffusers remembers to have read a configuration from."""
    config = msgspec.json.decode(path.read_bytes())
    config.pop("_name_or_path", None)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")


def load_causal(folder: Path) -> Model:
    """The causal model of a checkpoint in float32, with the text encoder that it shares."""
    causal = folder / CAUSAL_FOLDER
    opened = open_checkpoint(causal / "longsana.pt", preset=str(causal / "model.json"))
    weights = {name: opened.transformer.load(name).float() for name in opened.transformer}
    return _model(folder, CAUSAL, weights)


def save_causal(folder: Path, transformer: Transformer) -> None:
    """Write the causal transformer in LongSANA's layout, in float16, and what it is.

    diffusers has no class for it yet. The other parts are those of ``folder``.
    """
    causal = folder / CAUSAL_FOLDER
    causal.mkdir(parents=True, exist_ok=True)
    to_original.save(transformer.half().state_dict(), causal / "longsana.pt", "longsana")
    vae = autoencoders.read_spec(folder / "vae")
    spec = ModelSpec("shapes-causal", CAUSAL, vae, TEXT, CAUSAL_SAMPLING, STREAMING)
    text = msgspec.json.format(msgspec.json.encode(spec), indent=2)
    (causal / "model.json").write_bytes(text + b"\n")


def _transformer_config() -> dict[str, object]:
    spec = TRANSFORMER
    return {
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "num_attention_heads": spec.num_heads,
        "attention_head_dim": spec.head_dim,
        "num_layers": spec.num_layers,
        "num_cross_attention_heads": spec.num_cross_heads,
        "cross_attention_head_dim": spec.cross_head_dim,
        "cross_attention_dim": spec.width,
        "caption_channels": spec.caption_channels,
        "mlp_ratio": spec.ffn_dim / spec.width,
        "patch_size": spec.patch_size,
        "sample_size": world.SIZE // 8,
    }


def _text_config() -> Gemma2Config:
    return Gemma2Config(
        vocab_size=TEXT.vocab_size,
        hidden_size=TEXT.hidden_size,
        intermediate_size=TEXT.intermediate_size,
        num_hidden_layers=TEXT.num_layers,
        num_attention_heads=TEXT.num_heads,
        num_key_value_heads=TEXT.num_kv_heads,
        head_dim=TEXT.head_dim,
        query_pre_attn_scalar=int(TEXT.query_pre_attn_scalar),
        sliding_window=TEXT.sliding_window,
        max_position_embeddings=TEXT.sliding_window,
        pad_token_id=TEXT.pad_token_id,
        eos_token_id=1,
        bos_token_id=TEXT.bos_token_id,
        attn_implementation="eager",  # the only one that keeps the logits' soft cap
    )


def _initialise(transformer: Transformer, text_encoder: Gemma2Encoder) -> None:
    """Random weights as SANA starts: zero output, modulation, temporal convolution."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, weight in transformer.state_dict().items():
        if name.startswith(("proj_out", "time_embed.linear")) or "conv_temp" in name:
            nn.init.zeros_(weight)
    for name, weight in text_encoder.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.zeros_(weight)
        else:
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
