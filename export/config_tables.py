"""Every key of every configuration file that is read, class by class, and how it is treated.

The classes are those of diffusers, transformers and PEFT; a test walks their signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sana_rt.export.config_keys import (
    Follows,
    MustBe,
    NoEffect,
    Rule,
    Table,
    Tokens,
    Treatment,
    Used,
    Values,
    Within,
)
from sana_rt.model_spec import Padding, Scaling

# Bounds are far above every model, and below what would make a loop or an allocation of a typo.
_Size = Annotated[int, Meta(ge=1, le=1 << 24)]
_Factor = Annotated[int, Meta(ge=1, le=64)]
MAX_LAYERS: Final = 1000
_Layers = Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
_Id = Annotated[int, Meta(ge=0, lt=1 << 24)]
_Epsilon = Annotated[float, Meta(gt=0, le=1)]
_Positive = Annotated[float, Meta(gt=0, le=1e6)]
_Shift = Annotated[float, Meta(ge=1e-3, le=1e3)]  # beyond, float32 cannot tell sigma from 0 or 1
# below 1, float32 cancels digits where the class shifts its first sigma, which is then not 1
_EulerShift = Annotated[float, Meta(ge=1, le=1e3)]
_Finite = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Means = Annotated[tuple[_Finite, ...], Meta(max_length=1024)]
_Deviations = Annotated[tuple[_Positive, ...], Meta(max_length=1024)]
_Stages = Annotated[tuple[_Size, ...], Meta(min_length=2, max_length=8)]
_Halvings = Annotated[tuple[bool, ...], Meta(min_length=1, max_length=7)]
_Patch = tuple[Annotated[int, Meta(ge=1, le=1)], _Size, _Size]

_TRAINING: Final = NoEffect("Used in training only.")
_NOT_IN_SCHEDULE: Final = NoEffect("Flow sigmas take the place of the schedule that it shapes.")

#: Keys that ``save_pretrained`` writes for every class of diffusers.
_DIFFUSERS: Final[dict[str, Treatment]] = {
    "_class_name": NoEffect("Names the class, by which the table is chosen."),
    "_diffusers_version": NoEffect("Who wrote the file."),
    "_name_or_path": NoEffect("Where the file was."),
}
_UNQUANTIZED: Final[dict[str, Treatment]] = {
    "quantization_config": MustBe("weights before quantization", (None,), default=None)
}


def _off(reason: str) -> MustBe:
    """A switch that is off by default and must stay off."""
    return MustBe(reason, (False,), default=False)


_DIT: Final[dict[str, Treatment]] = {
    "in_channels": Used("Latent channels.", _Size),
    "out_channels": Follows(
        "A prediction of the variance is not taken off.",
        "in_channels",
        lambda before: before["in_channels"],
        also=(None,),
    ),
    "num_attention_heads": Used("Heads of self-attention.", _Size),
    "attention_head_dim": Used("Channels of a head.", _Size),
    "num_layers": Used("Blocks.", _Layers),
    "num_cross_attention_heads": Used("Heads of cross-attention.", _Size),
    "cross_attention_head_dim": Used("Channels of a head of cross-attention.", _Size),
    "cross_attention_dim": Follows(
        "Keys and values come from the projected text, which is as wide as the tokens.",
        "num_attention_heads · attention_head_dim",
        lambda before: before["num_attention_heads"] * before["attention_head_dim"],
        default=2240,
    ),
    "caption_channels": Used("Channels of the text encoder's output.", _Size),
    "mlp_ratio": Used("Width of the feed-forward over that of the tokens.", _Positive),
    "dropout": _TRAINING,
    "attention_bias": _off("the projections of self-attention have no bias"),
    "sample_size": NoEffect("Chooses diffusers' list of sizes; sizes are taken as asked."),
    "patch_size": Used("Latents of a token along t, h and w; one frame along t.", _Patch),
    "norm_elementwise_affine": _off("norms between layers have no weights"),
    "norm_eps": Used("Epsilon of the blocks' norms; the final layer has 1e-6.", _Epsilon, 1e-6),
    "interpolation_scale": NoEffect("No code of the class reads it."),
    "guidance_embeds": _off("guidance runs the network twice"),
    "guidance_embeds_scale": NoEffect("Scales the guidance's embedding, which must be off."),
    "qk_norm": MustBe(
        "queries and keys are normalised over all heads",
        ("rms_norm_across_heads",),
        default="rms_norm_across_heads",
    ),
    "rope_max_seq_len": Used("Positions of the longest axis.", _Size, 1024),
}


def _transformer(name: str) -> Table:
    return Table(
        ("_class_name", name),
        _DIT,
        _DIFFUSERS | _UNQUANTIZED,
        (
            Rule(
                "attention_head_dim is even",
                lambda values: values["attention_head_dim"] % 2 == 0,
            ),
            Rule("mlp_ratio leaves a channel", lambda values: ffn_dim(values) >= 1),
        ),
    )


def ffn_dim(values: Values) -> int:
    """Hidden channels of the feed-forward, rounded as diffusers does."""
    width = values["num_attention_heads"] * values["attention_head_dim"]
    return int(width * values["mlp_ratio"])


TRANSFORMER: Final = _transformer("SanaVideoTransformer3DModel")
#: Not in a release of diffusers; files have the keys of the class that it is made from.
CAUSAL_TRANSFORMER: Final = _transformer("SanaVideoCausalTransformer3DModel")

WAN: Final = Table(
    ("_class_name", "AutoencoderKLWan"),
    {
        "base_dim": Used("Channels at full size.", _Size),
        "decoder_base_dim": Follows(
            "Encoder and decoder are equally wide.",
            "base_dim",
            lambda before: before["base_dim"],
            also=(None,),
            default=None,
        ),
        "z_dim": Used("Latent channels.", _Size),
        "dim_mult": Used("Channels of each stage over those at full size.", _Stages),
        "num_res_blocks": Used("Residual blocks of a stage.", _Layers),
        "attn_scales": MustBe("attention is in the middle only", ([],), default=[]),
        "temperal_downsample": Used("Which halvings of the size also halve time.", _Halvings),
        "dropout": _TRAINING,
        "latents_mean": Used("Mean of each latent channel.", _Means),
        "latents_std": Used("Standard deviation of each latent channel.", _Deviations),
        "is_residual": _off("the blocks of Wan 2.2 are others"),
        "in_channels": MustBe("red, green, blue", (3,), default=3),
        "out_channels": MustBe("red, green, blue", (3,), default=3),
        "patch_size": MustBe("pixels are not folded into channels", (None,), default=None),
        "scale_factor_temporal": Follows(
            "Frames of a latent frame.",
            "2 to the power of the temporal halvings",
            lambda before: 2 ** sum(before["temperal_downsample"]),
            default=4,
        ),
        "scale_factor_spatial": Follows(
            "Pixels of a latent.",
            "2 to the power of the halvings",
            lambda before: 2 ** len(before["temperal_downsample"]),
            default=8,
        ),
    },
    _DIFFUSERS | _UNQUANTIZED,
    (
        Rule(
            "dim_mult has one entry more than temperal_downsample",
            lambda values: len(values["dim_mult"]) == len(values["temperal_downsample"]) + 1,
        ),
        Rule(
            "latents_mean and latents_std have z_dim entries",
            lambda values: (
                values["z_dim"] == len(values["latents_mean"]) == len(values["latents_std"])
            ),
        ),
    ),
)


LTX2_DOWN_BLOCK: Final = "LTX2VideoDownBlock3D"
_Widths = Annotated[tuple[_Size, ...], Meta(min_length=1, max_length=8)]
_Counts = Annotated[tuple[_Layers, ...], Meta(min_length=2, max_length=9)]
_Scalings = Annotated[tuple[Scaling, ...], Meta(min_length=1, max_length=8)]
_Factors = Annotated[tuple[_Factor, ...], Meta(min_length=1, max_length=8)]
_Switches = Annotated[tuple[bool, ...], Meta(min_length=1, max_length=8)]


def _all(value: object, of: str) -> Callable[[Values], object]:
    """A list of ``value`` for each entry of the key ``of``."""
    return lambda before: [value] * len(before[of])


def ltx2_strides(values: Values, scalings: str) -> tuple[int, int]:
    """What the scalings of a key come to in time and in space."""
    time, space = (
        sum(each != other for each in values[scalings]) for other in ("spatial", "temporal")
    )
    return 1 << time, values["patch_size"] << space


LTX2: Final = Table(
    ("_class_name", "AutoencoderKLLTX2Video"),
    {
        "in_channels": MustBe("red, green, blue", (3,), default=3),
        "out_channels": MustBe("red, green, blue", (3,), default=3),
        "latent_channels": Used("Latent channels.", _Size, 128),
        "patch_size": Used("Pixels of a side that are folded into channels.", _Factor, 4),
        "patch_size_t": MustBe("frames are not folded into channels", (1,), default=1),
        "downsample_type": Used(
            "What each stage of the encoder halves.",
            _Scalings,
            ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        ),
        "block_out_channels": Used(
            "Channels behind each stage of the encoder.", _Widths, [256, 512, 1024, 2048]
        ),
        "down_block_types": Follows(
            "There is one kind of stage.",
            f"{LTX2_DOWN_BLOCK} for each stage",
            _all(LTX2_DOWN_BLOCK, "downsample_type"),
            default=[LTX2_DOWN_BLOCK] * 4,
        ),
        "layers_per_block": Used(
            "Residual blocks of the encoder's stages and its middle.", _Counts, [4, 6, 6, 2, 2]
        ),
        "spatio_temporal_scaling": Follows(
            "Every stage scales.",
            "true for each stage",
            _all(True, "downsample_type"),
            also=(True,),
            default=[True] * 4,
        ),
        "upsample_type": Used(
            "What each stage of the decoder doubles, from the latents on.",
            _Scalings,
            ["spatiotemporal"] * 3,
        ),
        "decoder_block_out_channels": Used(
            "Channels of the decoder's stages, from the pixels on.", _Widths, [256, 512, 1024]
        ),
        "decoder_layers_per_block": Used(
            "Residual blocks of the decoder's stages and its middle, from the pixels on.",
            _Counts,
            [5, 5, 5, 5],
        ),
        "decoder_spatio_temporal_scaling": Follows(
            "Every stage scales.",
            "true for each stage",
            _all(True, "upsample_type"),
            also=(True,),
            default=[True] * 3,
        ),
        "decoder_inject_noise": MustBe(
            "decoding adds no noise",
            (False, *([False] * count for count in range(1, 10))),
            default=[False] * 4,
        ),
        "upsample_residual": Used(
            "Whether a stage adds its input, unfolded.", _Switches | bool, [True] * 3
        ),
        "upsample_factor": Used("By how much a stage divides channels.", _Factors, [2, 2, 2]),
        "timestep_conditioning": _off("decoding knows no timestep"),
        "resnet_norm_eps": Used("Epsilon of the norm in front of a shortcut.", _Epsilon, 1e-6),
        "scaling_factor": MustBe(
            "latents are scaled by their statistics alone", (1.0, 1), default=1.0
        ),
        "encoder_causal": Used("Whether the encoder sees no later frames.", bool, True),
        "decoder_causal": Used("Whether the decoder sees no later frames.", bool, True),
        "encoder_spatial_padding_mode": Used("Beyond the encoder's edges.", Padding, "zeros"),
        "decoder_spatial_padding_mode": Used("Beyond the decoder's edges.", Padding, "reflect"),
        "spatial_compression_ratio": Follows(
            "Pixels of a latent.",
            "patch_size, doubled by each scaling in space",
            lambda before: ltx2_strides(before, "upsample_type")[1],
            also=(None,),
            default=None,
        ),
        "temporal_compression_ratio": Follows(
            "Frames of a latent frame.",
            "1, doubled by each scaling in time",
            lambda before: ltx2_strides(before, "upsample_type")[0],
            also=(None,),
            default=None,
        ),
    },
    _DIFFUSERS | _UNQUANTIZED,
)


def ltx2_residual(values: Values) -> tuple[bool, ...]:
    """Whether each stage of the decoder adds its input; one value stands for all."""
    given = values["upsample_residual"]
    return (given,) * len(values["upsample_type"]) if isinstance(given, bool) else given


def _layer_types(before: Values) -> list[str]:
    kinds = ("sliding_attention", "full_attention")
    return [kinds[index % 2] for index in range(before["num_hidden_layers"])]


_ROPE: Final = Table(
    ("rope_type", "rope_parameters"),
    {
        "rope_theta": Used("Base of the rotary frequencies.", _Positive | None, None),
        "rope_type": MustBe("rotary frequencies are not scaled", ("default",), default="default"),
    },
)

GEMMA2: Final = Table(
    ("model_type", "gemma2"),
    {
        "vocab_size": Used("Rows of the embedding.", _Size),
        "hidden_size": Used("Channels.", _Size),
        "intermediate_size": Used("Hidden channels of the feed-forward.", _Size),
        "num_hidden_layers": Used("Layers.", _Layers),
        "num_attention_heads": Used("Heads.", _Size),
        "num_key_value_heads": Used("Heads of keys and values.", _Size),
        "head_dim": Used("Channels of a head.", _Size),
        "hidden_activation": MustBe(
            "the tanh form of GELU", ("gelu_pytorch_tanh",), default="gelu_pytorch_tanh"
        ),
        "max_position_embeddings": NoEffect("Frequencies of the default type do not depend on it."),
        "initializer_range": _TRAINING,
        "rms_norm_eps": Used("Epsilon of the norms.", _Epsilon, 1e-6),
        "use_cache": NoEffect("A prompt is encoded in one pass."),
        "pad_token_id": Used("Padding.", _Id, 0),
        "eos_token_id": NoEffect("No text is generated; the tokenizer must have it."),
        "bos_token_id": Used("The first token.", _Id, 2),
        "tie_word_embeddings": NoEffect("The encoder has no language head."),
        "rope_parameters": Within("Rotary positions.", _ROPE),
        "attention_bias": _off("the projections have no bias"),
        "attention_dropout": _TRAINING,
        "query_pre_attn_scalar": Used("Logits are divided by its square root.", _Positive),
        "sliding_window": Used("Keys that every other layer sees.", _Size, 4096),
        "layer_types": Follows(
            "Even layers see a window, odd layers everything.",
            "sliding_attention and full_attention in turn",
            _layer_types,
            also=(None,),
            default=None,
        ),
        "final_logit_softcapping": NoEffect("The encoder has no language head."),
        "attn_logit_softcapping": Used("Cap of the attention's logits.", _Positive | None, 50.0),
        "use_bidirectional_attention": MustBe("attention is causal", (None, False), default=None),
        # every configuration of transformers has these
        "model_type": NoEffect("Names the class, by which the table is chosen."),
        "transformers_version": NoEffect("Who wrote the file."),
        "architectures": NoEffect("The tensors say which class wrote them."),
        "_name_or_path": NoEffect("Where the file was."),
        "output_hidden_states": NoEffect("What a call returns beside the last states."),
        "output_attentions": NoEffect("What a call returns beside the last states."),
        "return_dict": NoEffect("How a call returns."),
        "dtype": NoEffect("The type of the weights is that of their file."),
        "chunk_size_feed_forward": NoEffect("The class computes all tokens at once."),
        "is_encoder_decoder": _off("there is no second stack"),
        "id2label": NoEffect("Of classifiers."),
        "label2id": NoEffect("Of classifiers."),
        "problem_type": NoEffect("Of classifiers."),
    },
    _UNQUANTIZED
    | {
        # transformers 4
        "rope_theta": Used("Their base, where rope_parameters does not say.", _Positive, 10000.0),
        "rope_scaling": MustBe("rotary frequencies are not scaled", (None,), default=None),
        "hidden_act": NoEffect("The class reads hidden_activation."),
        "torch_dtype": NoEffect("The type of the weights is that of their file."),
        "cache_implementation": NoEffect("A prompt is encoded in one pass."),
        "sliding_window_size": NoEffect("The class reads sliding_window."),
        "_attn_implementation_autoset": NoEffect("Chooses among kernels of one function."),
    },
    (
        Rule("head_dim is even", lambda values: values["head_dim"] % 2 == 0),
        Rule(
            "num_attention_heads is a multiple of num_key_value_heads",
            lambda values: values["num_attention_heads"] % values["num_key_value_heads"] == 0,
        ),
        Rule(
            "pad_token_id and bos_token_id are below vocab_size",
            lambda values: (
                max(values["pad_token_id"], values["bos_token_id"]) < values["vocab_size"]
            ),
        ),
    ),
)

_THOUSAND: Final = MustBe("timesteps run from 0 to 1000", (1000,), default=1000)
_NOT_SHIFTED_BY_SIZE: Final = NoEffect("Of a shift that depends on the size.")

_DPM: Final[dict[str, Treatment]] = {
    "num_train_timesteps": _THOUSAND,
    "beta_start": _NOT_IN_SCHEDULE,
    "beta_end": _NOT_IN_SCHEDULE,
    "beta_schedule": _NOT_IN_SCHEDULE,
    "trained_betas": _NOT_IN_SCHEDULE,
    "solver_order": MustBe("the solver is DPM-Solver++(2M)", (2,), default=2),
    "prediction_type": MustBe(
        "the network predicts a velocity", ("flow_prediction",), default="epsilon"
    ),
    "thresholding": _off("estimates are not clipped"),
    "dynamic_thresholding_ratio": NoEffect("Of thresholding, which must be off."),
    "sample_max_value": NoEffect("Of thresholding, which must be off."),
    "algorithm_type": MustBe(
        "the solver is DPM-Solver++(2M)", ("dpmsolver++",), default="dpmsolver++"
    ),
    "solver_type": MustBe(
        "diffusers takes the last three for the first",
        ("midpoint", "logrho", "bh1", "bh2"),
        default="midpoint",
    ),
    "lower_order_final": NoEffect("The last step is of first order because it ends at sigma 0."),
    "euler_at_final": NoEffect("The last step is of first order because it ends at sigma 0."),
    "use_karras_sigmas": _off("sigmas are those of the flow"),
    "use_exponential_sigmas": _off("sigmas are those of the flow"),
    "use_beta_sigmas": _off("sigmas are those of the flow"),
    "use_lu_lambdas": _off("sigmas are those of the flow"),
    "use_flow_sigmas": MustBe("sigmas are those of the flow", (True,), default=False),
    "flow_shift": Used("Shift of the sigmas.", _Shift, 1.0),
    "final_sigmas_type": MustBe("the last step ends at sigma 0", ("zero",), default="zero"),
    "lambda_min_clipped": _NOT_IN_SCHEDULE,
    "variance_type": NoEffect("Of networks that predict noise."),
    "timestep_spacing": _NOT_IN_SCHEDULE,
    "steps_offset": _NOT_IN_SCHEDULE,
    "rescale_betas_zero_snr": _NOT_IN_SCHEDULE,
    "use_dynamic_shifting": NoEffect("Allows a shift that the pipelines do not ask for."),
    "time_shift_type": NoEffect("Of a shift that the pipelines do not ask for."),
}
_FLOW_EULER: Final[dict[str, Treatment]] = {
    "num_train_timesteps": _THOUSAND,
    "shift": Used("Shift of the sigmas.", _EulerShift, 1.0),
    "use_dynamic_shifting": _off("the shift does not depend on the size"),
    "base_shift": _NOT_SHIFTED_BY_SIZE,
    "max_shift": _NOT_SHIFTED_BY_SIZE,
    "base_image_seq_len": _NOT_SHIFTED_BY_SIZE,
    "max_image_seq_len": _NOT_SHIFTED_BY_SIZE,
    "invert_sigmas": _off("sigmas fall"),
    "shift_terminal": MustBe("sigmas are not stretched", (None,), default=None),
    "use_karras_sigmas": _off("sigmas are those of the flow"),
    "use_exponential_sigmas": _off("sigmas are those of the flow"),
    "use_beta_sigmas": _off("sigmas are those of the flow"),
    "time_shift_type": _NOT_SHIFTED_BY_SIZE,
    "stochastic_sampling": _off("the solver adds no noise"),
}


def _scheduler(name: str, own: dict[str, Treatment], other: dict[str, Treatment]) -> Table:
    foreign = NoEffect("Another scheduler's: from_config hands it on, and the class ignores it.")
    beyond: dict[str, Treatment] = {key: foreign for key in other if key not in own}
    return Table(("_class_name", name), own, _DIFFUSERS | beyond)


DPM_SOLVER: Final = _scheduler("DPMSolverMultistepScheduler", _DPM, _FLOW_EULER)
FLOW_EULER: Final = _scheduler("FlowMatchEulerDiscreteScheduler", _FLOW_EULER, _DPM)


class AddedToken(msgspec.Struct, forbid_unknown_fields=True):
    """A token of a tokenizer's configuration; None is what the file does not say."""

    content: str
    lstrip: bool | None = None
    normalized: bool | None = None
    rstrip: bool | None = None
    single_word: bool | None = None
    special: bool | None = None
    kind: str = msgspec.field(default="AddedToken", name="__type")


TOKENIZER_CLASSES: Final = (
    "GemmaTokenizer",
    "GemmaTokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)
_OneToken = str | AddedToken
_TOKEN: Final = Tokens("One that is not would be added.", _OneToken | None)
_CALLED: Final = NoEffect("The pipelines say it when they call the tokenizer.")
_DECODING: Final = NoEffect("Of tokens to text, which is not done.")
_SENTENCEPIECE: Final = NoEffect("Of the implementation that does not read tokenizer.json.")
_LOADING: Final = NoEffect("Of how the file was loaded.")

TOKENIZER: Final = Table(
    ("tokenizer_class", "GemmaTokenizer"),
    {
        "tokenizer_class": MustBe(
            "these take tokenizer.json as it is", TOKENIZER_CLASSES, default="GemmaTokenizer"
        ),
        "unk_token": _TOKEN,
        "bos_token": _TOKEN,
        "eos_token": _TOKEN,
        "pad_token": _TOKEN,
        "mask_token": _TOKEN,
        "add_bos_token": MustBe("a text begins with BOS", (True,), default=True),
        "add_eos_token": _off("a text does not end with EOS"),
        "additional_special_tokens": Tokens("As above.", list[_OneToken] | None),
        "extra_special_tokens": Tokens("As above.", list[_OneToken] | dict[str, _OneToken] | None),
        "added_tokens_decoder": Tokens(
            "With the same number and properties.", dict[str, AddedToken] | None
        ),
        "split_special_tokens": _off("a special token in a prompt is that token"),
        "truncation_side": MustBe("a long prompt loses its end", ("right",), default="right"),
        "padding_side": _CALLED,
        "model_max_length": _CALLED,
        "max_length": _CALLED,
        "stride": _CALLED,
        "truncation_strategy": _CALLED,
        "pad_to_multiple_of": _CALLED,
        "pad_token_type_id": NoEffect("Token types are not used."),
        "chat_template": NoEffect("A prompt is not a chat."),
        "clean_up_tokenization_spaces": _DECODING,
        "spaces_between_special_tokens": _DECODING,
        "legacy": _SENTENCEPIECE,
        "sp_model_kwargs": _SENTENCEPIECE,
        "use_default_system_prompt": NoEffect("A prompt is not a chat."),
        "backend": _LOADING,
        "is_local": _LOADING,
        "local_files_only": _LOADING,
        "name_or_path": _LOADING,
        "processor_class": _LOADING,
        "special_tokens_map_file": _LOADING,
        "tokenizer_file": _LOADING,
    },
)


def _component(library: str, *classes: str) -> MustBe:
    known = ([library, name] for name in classes)
    return MustBe("these are read", (*known, [None, None]), default=[None, None])


_DPM_NAME, _EULER_NAME = DPM_SOLVER.identity[1], FLOW_EULER.identity[1]


def _pipeline(name: str, transformer: Table, *schedulers: str) -> Table:
    return Table(
        ("_class_name", name),
        {
            "tokenizer": _component("transformers", *TOKENIZER_CLASSES),
            "text_encoder": _component("transformers", "Gemma2Model"),
            "vae": _component(
                "diffusers", "AutoencoderKLWan", "AutoencoderKLLTX2Video", "AutoencoderDC"
            ),
            "transformer": _component("diffusers", transformer.identity[1]),
            "scheduler": _component("diffusers", *schedulers),
        },
        _DIFFUSERS,
    )


PIPELINES: Final = (
    _pipeline("SanaVideoPipeline", TRANSFORMER, _DPM_NAME, _EULER_NAME),
    _pipeline("SanaImageToVideoPipeline", TRANSFORMER, _EULER_NAME),
    _pipeline("LongSanaVideoPipeline", CAUSAL_TRANSFORMER, _DPM_NAME, _EULER_NAME),
)

_BY_NAMES: Final = NoEffect("The names of the tensors say it.")
_OF_INIT: Final = NoEffect("Of init_lora_weights.")


def _none(reason: str, *also: object) -> MustBe:
    return MustBe(reason, (None, *also), default=None)


#: PEFT's settings of a LoRA; they lie beside its weights, or in their file as diffusers saves it.
PEFT_LORA: Final = Table(
    ("peft_type", "LORA"),
    {
        "peft_type": MustBe("another method is no product", ("LORA",), default="LORA"),
        "lora_alpha": Used("Over the rank, the scale of what is added.", _Finite),
        "alpha_pattern": Used(
            "It for layers by name; no other regular expressions are read.",
            dict[Annotated[str, Meta(pattern=r"^\^?[A-Za-z0-9_.]+$")], _Finite] | None,
            {},
        ),
        "use_rslora": Used("Divides by the root of the rank.", bool, False),
        "r": NoEffect("The shapes of the tensors say it."),
        "rank_pattern": NoEffect("The shapes of the tensors say it."),
        "target_modules": _BY_NAMES,
        "exclude_modules": _BY_NAMES,
        "layers_to_transform": _BY_NAMES,
        "layers_pattern": _BY_NAMES,
        "init_lora_weights": MustBe(
            "others begin with a change of the model's own weights",
            (True, False, "gaussian", "eva", "orthogonal", "mica"),
            default=True,
        ),
        "loftq_config": _OF_INIT,
        "eva_config": _OF_INIT,
        "corda_config": _OF_INIT,
        "lora_ga_config": _OF_INIT,
        "layer_replication": _none("the model has its own layers", []),
        "modules_to_save": _none("no weights but factors are read", []),
        "trainable_token_indices": _none("no weights but factors are read"),
        "target_parameters": _none("factors are of layers", []),
        "bias": MustBe("biases are not changed", ("none",), default="none"),
        "lora_bias": _off("biases are not changed"),
        "fan_in_fan_out": _off("weights are [out, in]"),
        "use_dora": _off("DoRA scales by a norm of the merged weight"),
        "use_qalora": _off("QALoRA pools the layer's input"),
        "use_bdlora": _none("block-diagonal factors are stored in another form"),
        "alora_invocation_tokens": _none("what is merged applies to every token"),
        "arrow_config": _none("what is merged is not routed"),
        "velora_config": _none("VeLoRA is not read"),
        "monteclora_config": _none("MonteCLoRA samples its factors"),
        "kasa_config": _none("KaSA has a diagonal between the factors"),
        "qalora_group_size": NoEffect("Of use_qalora."),
        "lora_dropout": _TRAINING,
        "inference_mode": _TRAINING,
        "ensure_weight_tying": _TRAINING,
        "megatron_config": NoEffect("Divides layers among devices."),
        "megatron_core": NoEffect("Divides layers among devices."),
        "runtime_config": NoEffect("Where PEFT computes."),
        "task_type": NoEffect("The model is given."),
        "auto_mapping": NoEffect("The model is given."),
        "base_model_name_or_path": NoEffect("The model is given."),
        "revision": NoEffect("The model is given."),
        "peft_version": NoEffect("Who wrote the file."),
    },
    {
        "enable_lora": _none("factors of a part of a layer's rows are not read"),
        "merge_weights": NoEffect("Where PEFT computed."),
    },
)

#: What the documentation lists, under its titles.
DOCUMENTED: Final[Mapping[str, Table]] = {
    "transformer/config.json": TRANSFORMER,
    "vae/config.json": WAN,
    "vae/config.json of LTX-2": LTX2,
    "text_encoder/config.json": GEMMA2,
    "scheduler/scheduler_config.json of DPM-Solver++": DPM_SOLVER,
    "scheduler/scheduler_config.json of flow Euler": FLOW_EULER,
    "tokenizer/tokenizer_config.json": TOKENIZER,
    "model_index.json": PIPELINES[0],
    "adapter_config.json of a LoRA": PEFT_LORA,
}
