"""What a checkpoint is: sizes and constants of its parts, read once and carried in the manifest.

Numbers come from the released configurations of SANA-Video; nothing here is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from sana_rt.errors import RequestError

SolverName = Literal["dpmpp_2m", "flow_euler", "renoise"]
Scaling = Literal["spatial", "temporal", "spatiotemporal"]
Padding = Literal["zeros", "reflect"]

#: Pixels that a scaling makes of one.
_PIXELS: Final[dict[Scaling, int]] = {"spatial": 4, "temporal": 2, "spatiotemporal": 8}
Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]


_SHOWN: Final = 60  # characters of a value in a message
_POWERS: Final = 54  # of two; no number of a manifest is larger


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every specification: immutable, and unknown fields are refused."""


class TransformerSpec(Frozen, frozen=True):
    """The diffusion transformer (DiT)."""

    in_channels: Count
    out_channels: Count
    patch_size: tuple[Count, Count, Count]  # t, h, w
    num_layers: Count
    num_heads: Count
    head_dim: Count
    num_cross_heads: Count
    cross_head_dim: Count
    caption_channels: Count
    ffn_dim: Count
    rope_max_positions: Count = 1024
    norm_eps: Positive = 1e-6
    qk_norm_eps: Positive = 1e-5
    caption_norm_eps: Positive = 1e-5
    attention_eps: NonNegative = 1e-15  # added to the denominator of linear attention
    causal: bool = False  # block-causal weights (LongSANA); the operators are the same

    @property
    def width(self) -> int:
        """Channels of a token (D)."""
        return self.num_heads * self.head_dim

    @property
    def rope_dims(self) -> tuple[int, int, int]:
        """Channels of a head rotated by the t, h and w position."""
        side = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * side, side, side


class VAESpec(Frozen, frozen=True, tag_field="kind"):
    """What is common to video autoencoders; ``kind`` says which architecture one has."""

    latent_channels: Count
    temporal_stride: Count
    spatial_stride: Count
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[Positive, ...] = ()

    @property
    def kind(self) -> str:
        """The architecture, as JSON says it."""
        return str(self.__struct_config__.tag)

    @property
    def first_frames(self) -> int:
        """Video frames that the first latent frame of a clip stands for."""
        return 1

    @property
    def least_size(self) -> int:
        """The smallest latent height and width."""
        return 1

    def video_frames(self, latent_frames: int) -> int:
        """Video frames of a clip's first ``latent_frames``."""
        return (latent_frames - 1) * self.temporal_stride + self.first_frames


class WanVAESpec(VAESpec, frozen=True, tag="wan"):
    """The causal autoencoder of Wan 2.1."""

    base_dim: Count = 96
    dim_mult: tuple[Count, ...] = (1, 2, 4, 4)
    num_res_blocks: Count = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)


class LTX2VAESpec(VAESpec, frozen=True, tag="ltx2"):
    """The autoencoder of LTX-2; the defaults are those of version 2.0.

    Lists go from pixels to latents, as in diffusers' configuration, but for ``upsample_type``,
    which goes from latents to pixels. The mean and standard deviation of latents are tensors of
    the checkpoint.
    """

    patch_size: Count = 4  # pixels of a side that are folded into channels
    block_out_channels: tuple[Count, ...] = (256, 512, 1024, 2048)
    layers_per_block: tuple[Count, ...] = (4, 6, 6, 2, 2)
    downsample_type: tuple[Scaling, ...] = (
        *("spatial", "temporal"),
        *("spatiotemporal", "spatiotemporal"),
    )
    decoder_block_out_channels: tuple[Count, ...] = (256, 512, 1024)
    decoder_layers_per_block: tuple[Count, ...] = (5, 5, 5, 5)
    upsample_type: tuple[Scaling, ...] = ("spatiotemporal",) * 3
    upsample_residual: tuple[bool, ...] = (True,) * 3
    upsample_factor: tuple[Count, ...] = (2,) * 3
    encoder_causal: bool = True
    decoder_causal: bool = False
    encoder_padding: Padding = "zeros"
    decoder_padding: Padding = "reflect"
    norm_eps: Positive = 1e-6  # of the norm in front of a shortcut

    @property
    def least_size(self) -> int:
        """A row is reflected in the one before it, so there must be two."""
        return 2 if "reflect" in (self.encoder_padding, self.decoder_padding) else 1


class DCAEVAESpec(VAESpec, frozen=True, tag="dcae"):
    """The deep-compression autoencoder for videos, DC-AE-V."""


class TextSpec(Frozen, frozen=True):
    """The Gemma-2 text encoder and how a prompt becomes its input."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    query_pre_attn_scalar: Positive
    attn_logit_softcap: Positive | None = 50.0
    sliding_window: Count = 4096
    rope_theta: Positive = 10000.0
    rms_norm_eps: Positive = 1e-6
    max_tokens: Count = 300  # what the transformer sees: BOS and the last 299
    bos_token_id: Natural = 2
    pad_token_id: Natural = 0
    instruction: str = ""  # the complex human instruction (CHI) put before a prompt


class SamplingSpec(Frozen, frozen=True):
    """Defaults of a generation request."""

    solver: SolverName = "dpmpp_2m"
    num_inference_steps: Count = 50
    guidance_scale: NonNegative = 6.0
    flow_shift: Positive = 8.0
    height: Count = 480
    width: Count = 832
    num_frames: Count = 81
    fps: Count = 16
    motion_score: int | None = 30
    negative_prompt: str = ""


class StreamingSpec(Frozen, frozen=True):
    """Block-causal sampling (LongSANA): chunks of latent frames, few steps, one commit pass."""

    chunk_frames: Count = 10
    timesteps: tuple[NonNegative, ...] = (1000.0, 960.0, 889.0, 727.0)
    flow_shift: Positive = 7.0


class ModelSpec(Frozen, frozen=True):
    """Everything the runtime must know about a checkpoint."""

    name: str
    transformer: TransformerSpec
    vae: WanVAESpec | LTX2VAESpec | DCAEVAESpec
    text: TextSpec
    sampling: SamplingSpec = SamplingSpec()
    streaming: StreamingSpec | None = None

    @property
    def chunking(self) -> StreamingSpec:
        """How a block-causal clip is sampled; LongSANA's values if the model does not say."""
        return self.streaming or StreamingSpec()

    @property
    def size_multiples(self) -> tuple[int, int]:
        """Height and width in pixels must be multiples of these."""
        _, patch_height, patch_width = self.transformer.patch_size
        return self.vae.spatial_stride * patch_height, self.vae.spatial_stride * patch_width

    @property
    def least_size(self) -> tuple[int, int]:
        """The smallest height and width in pixels: the multiples that the autoencoder can make."""
        least = self.vae.least_size * self.vae.spatial_stride
        height, width = (-(-least // multiple) * multiple for multiple in self.size_multiples)
        return height, width

    @property
    def greatest_size(self) -> tuple[int, int]:
        """The largest height and width in pixels: those that have rotary positions."""
        height, width = self.size_multiples
        positions = self.transformer.rope_max_positions
        return positions * height, positions * width

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip; raises :class:`RequestError` if ``num_frames`` has none."""
        stride, first = self.vae.temporal_stride, self.vae.first_frames
        later = num_frames - first
        if later < 0 or later % stride:
            positions = self.transformer.rope_max_positions * self.transformer.patch_size[0]
            raise RequestError(
                f"num_frames is {num_frames}.",
                expected=f"{stride}k + {first} frames for the {self.vae.kind} autoencoder.",
                remedy=f"ask for {_nearest(later // stride, stride, positions, first)}.",
            )
        return later // stride + 1

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Latent height and width of a clip; raises :class:`RequestError` if not divisible."""
        sides = ("height", "width")
        for name, pixels, multiple, least in zip(
            sides, (height, width), self.size_multiples, self.least_size, strict=True
        ):
            if pixels < least or pixels % multiple:
                positions = self.transformer.rope_max_positions
                nearest = _nearest(max(pixels, least) // multiple, multiple, positions)
                at_least = f", at least {least}" if least > multiple else ""
                raise RequestError(
                    f"{name} is {pixels} pixels.",
                    expected=f"a positive multiple of {multiple}{at_least}.",
                    remedy=f"ask for {nearest}.",
                )
        return height // self.vae.spatial_stride, width // self.vae.spatial_stride


def _nearest(count: int, unit: int, most: int, extra: int = 0) -> str:
    """``count`` units or one more, of which there are 1 to ``most``: or 0, before an ``extra``."""
    least, most = (0, most - 1) if extra else (1, most)
    below = min(max(count, least), most)
    numbers = dict.fromkeys((below, min(below + 1, most)))
    return " or ".join(str(number * unit + extra) for number in numbers)


def differences(found: Frozen, wanted: Frozen, path: str = "") -> Iterator[tuple[str, str, str]]:
    """The fields in which two specifications differ: path, and both values in words."""
    if type(found) is not type(wanted):
        yield f"{path}kind", _shown(found), _shown(wanted)
        return
    for name in wanted.__struct_fields__:
        one, other = getattr(found, name), getattr(wanted, name)
        if isinstance(one, Frozen) and isinstance(other, Frozen):
            yield from differences(one, other, f"{path}{name}.")
        elif one != other:
            yield f"{path}{name}", _shown(one), _shown(other)


def _shown(value: object) -> str:
    text = value.kind if isinstance(value, VAESpec) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class Contradiction(NamedTuple):
    """A field that does not fit the others: its path in the specification, and its value."""

    field: str
    value: object
    expected: str


def contradictions(model: ModelSpec) -> Iterator[Contradiction]:
    """What cannot be said of one model: fields that follow from others, and do not."""
    yield from _in_the_transformer(model)
    yield from _in_the_autoencoder(model.vae)
    yield from _in_the_sampling(model)


def _in_the_transformer(model: ModelSpec) -> Iterator[Contradiction]:
    t, vae, text = model.transformer, model.vae, model.text
    channels = f"{t.in_channels}, which transformer.in_channels is"
    if t.patch_size[0] != 1:
        patch = list(t.patch_size)
        yield Contradiction("transformer.patch_size", patch, "patches of 1 latent frame: [1, h, w]")
    if t.out_channels != t.in_channels:
        yield Contradiction("transformer.out_channels", t.out_channels, channels)
    if vae.latent_channels != t.in_channels:
        yield Contradiction("vae.latent_channels", vae.latent_channels, channels)
    for name in ("bos_token_id", "pad_token_id"):
        if getattr(text, name) >= text.vocab_size:
            below = f"below {text.vocab_size}, which text.vocab_size is"
            yield Contradiction(f"text.{name}", getattr(text, name), below)


def _in_the_autoencoder(vae: VAESpec) -> Iterator[Contradiction]:
    for name in ("latents_mean", "latents_std"):
        count = len(getattr(vae, name))
        if count not in (0, vae.latent_channels):
            wanted = f"{vae.latent_channels} values, one a channel, or none"
            yield Contradiction(f"vae.{name}", f"a list of {count} values", wanted)
    if isinstance(vae, WanVAESpec):
        yield from _in_wan(vae)
    if isinstance(vae, LTX2VAESpec):
        lists = list(_in_ltx2(vae))
        yield from lists or _in_ltx2_stages(vae)


def _in_wan(vae: WanVAESpec) -> Iterator[Contradiction]:
    levels, doubling = len(vae.dim_mult), vae.temporal_downsample
    if levels != len(doubling) + 1:
        wanted = f"{len(doubling) + 1} values, one more than vae.temporal_downsample has"
        yield Contradiction("vae.dim_mult", f"a list of {levels} values", wanted)
    for name, halvings in (("temporal_stride", sum(doubling)), ("spatial_stride", len(doubling))):
        if getattr(vae, name) != 1 << halvings:
            wanted = f"2 to the power of {halvings}, as vae.temporal_downsample says"
            yield Contradiction(f"vae.{name}", getattr(vae, name), wanted)


def _in_ltx2(vae: LTX2VAESpec) -> Iterator[Contradiction]:
    for scalings, by_stage, by_stage_and_middle in (
        ("downsample_type", ("block_out_channels",), "layers_per_block"),
        (
            "upsample_type",
            ("decoder_block_out_channels", "upsample_residual", "upsample_factor"),
            "decoder_layers_per_block",
        ),
    ):
        given = getattr(vae, scalings)
        wanted = dict.fromkeys(by_stage, len(given)) | {by_stage_and_middle: len(given) + 1}
        for name, count in wanted.items():
            if (found := len(getattr(vae, name))) != count:
                follows = f"{count} values, as vae.{scalings} says"
                yield Contradiction(f"vae.{name}", f"a list of {found} values", follows)
        if _strides(vae, given) != (vae.temporal_stride, vae.spatial_stride):
            follows = (
                f"those that make {vae.temporal_stride} of time, {vae.spatial_stride} of space"
            )
            yield Contradiction(f"vae.{scalings}", f"a list of {len(given)} scalings", follows)


def _in_ltx2_stages(vae: LTX2VAESpec) -> Iterator[Contradiction]:
    """What folds and unfolds must divide, and what is added must have the same channels."""
    before = vae.latent_channels
    for width, scaling in zip(vae.block_out_channels, vae.downsample_type, strict=True):
        pixels = _PIXELS[scaling]
        if width % pixels or before * pixels % width:
            wanted = f"multiples of {pixels} that divide {before * pixels} behind a stage"
            yield Contradiction("vae.block_out_channels", width, wanted)
        before = width
    before = vae.decoder_block_out_channels[-1]
    for width, scaling, factor, adds in zip(
        vae.decoder_block_out_channels[::-1],
        vae.upsample_type,
        vae.upsample_factor[::-1],
        vae.upsample_residual[::-1],
        strict=True,
    ):
        pixels = _PIXELS[scaling]
        if width % factor or (factor > 1 and before != width):
            wanted = f"{before}, the width before, a multiple of its factor {factor}"
            yield Contradiction("vae.decoder_block_out_channels", width, wanted)
        if adds and (pixels % factor or width % pixels):
            wanted = f"a divisor of {pixels} where a stage adds its input of {width} channels"
            yield Contradiction("vae.upsample_factor", factor, wanted)
        before = width // factor


def _strides(vae: LTX2VAESpec, scalings: tuple[Scaling, ...]) -> tuple[int, int]:
    """What the scalings come to in time and space; no larger than 64 bits have to hold."""
    time, space = (sum(each != other for each in scalings) for other in ("spatial", "temporal"))
    return 1 << min(time, _POWERS), vae.patch_size << min(space, _POWERS)


def _in_the_sampling(model: ModelSpec) -> Iterator[Contradiction]:
    causal, streaming, solver = model.transformer.causal, model.streaming, model.sampling.solver
    if causal != (streaming is not None):
        said = "null" if streaming is None else "given"
        wanted = "given for a block-causal transformer (transformer.causal), and for no other"
        yield Contradiction("streaming", said, wanted)
    if streaming is not None and not streaming.timesteps:
        yield Contradiction("streaming.timesteps", "empty", "at least one timestep")
    if streaming is None and solver == "renoise":
        wanted = "another solver for a model without streaming"
        yield Contradiction("sampling.solver", repr(solver), wanted)


# mean and standard deviation of Wan 2.1's latents, by channel.
WAN_LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

WAN_VAE = WanVAESpec(
    latent_channels=16,
    temporal_stride=4,
    spatial_stride=8,
    latents_mean=WAN_LATENTS_MEAN,
    latents_std=WAN_LATENTS_STD,
)
LTX2_VAE = LTX2VAESpec(latent_channels=128, temporal_stride=8, spatial_stride=32)
DCAE_VAE = DCAEVAESpec(latent_channels=32, temporal_stride=4, spatial_stride=32)

GEMMA2_2B = TextSpec(
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_layers=26,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    query_pre_attn_scalar=256.0,
)


def _transformer_2b(channels: int, patch: int, *, causal: bool = False) -> TransformerSpec:
    return TransformerSpec(
        in_channels=channels,
        out_channels=channels,
        patch_size=(1, patch, patch),
        num_layers=20,
        num_heads=20,
        head_dim=112,
        num_cross_heads=20,
        cross_head_dim=112,
        caption_channels=2304,
        ffn_dim=6720,
        attention_eps=1e-8 if causal else 1e-15,
        causal=causal,
    )


_SAMPLING_720P = SamplingSpec(height=704, width=1280)

#: The released (and, for DC-AE-V, published) configurations by name.
PRESETS: Final[dict[str, ModelSpec]] = {
    spec.name: spec
    for spec in (
        ModelSpec("sana-video-2b-480p", _transformer_2b(16, 2), WAN_VAE, GEMMA2_2B),
        ModelSpec(
            "sana-video-2b-720p", _transformer_2b(128, 1), LTX2_VAE, GEMMA2_2B, _SAMPLING_720P
        ),
        ModelSpec(
            "sana-video-2b-720p-dcaev", _transformer_2b(32, 1), DCAE_VAE, GEMMA2_2B, _SAMPLING_720P
        ),
        ModelSpec(
            "longsana-2b-480p",
            _transformer_2b(16, 2, causal=True),
            WAN_VAE,
            GEMMA2_2B,
            SamplingSpec(
                solver="renoise", num_inference_steps=4, guidance_scale=1.0, motion_score=10
            ),
            StreamingSpec(),
        ),
    )
}
