"""A clip in chunks with carried state, against the whole clip under a block-causal mask."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sana_rt import graph_names
from sana_rt.export.modules.block import Block, Depthwise
from sana_rt.export.modules.transformer import Transformer
from sana_rt.model_spec import TransformerSpec

#: Largest difference over largest value of float32 against float64: a hundred roundings of
#: 2^-24 on the way through two blocks.
TOLERANCE = 1e-5
#: The same for bfloat16, whose roundings are 2^-9: a block adds at most ten in a row to what
#: its input carried, and they are independent, so 2^-9 · sqrt(10) on average, three times that
#: at most.
BFLOAT16_TOLERANCE = 0.02

SPEC = TransformerSpec(
    in_channels=6,
    out_channels=6,
    patch_size=(1, 2, 2),
    num_layers=2,
    num_heads=2,
    head_dim=28,
    num_cross_heads=2,
    cross_head_dim=28,
    caption_channels=24,
    ffn_dim=84,
    rope_max_positions=64,
    attention_eps=1e-8,
    causal=True,
)
ROWS, COLUMNS = 3, 5


def transformer(depthwise: Depthwise = "conv") -> Transformer:
    torch.manual_seed(0)
    model = Transformer(SPEC, depthwise).eval()
    for key, parameter in model.named_parameters():
        if "norm" in key:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.7)
        elif parameter.ndim == 1 or "table" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def clip(frames: int) -> dict[str, Tensor]:
    torch.manual_seed(frames)
    return {
        "latents": torch.randn(2, SPEC.in_channels, frames, 2 * ROWS, 2 * COLUMNS),
        "timestep": torch.rand(2, frames) * 1000,
        "hidden_states": torch.randn(2, 5, SPEC.caption_channels),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }


def frames_of(given: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    latents, timestep = given["latents"][:, :, start:end], given["timestep"][:, start:end]
    return {**given, "latents": latents, "timestep": timestep}


def in_chunks(model: Transformer, given: dict[str, Tensor], starts: list[int]) -> Tensor:
    """The velocity of a clip, chunk by chunk, from each start to the next."""
    state, velocities = None, []
    for start, end in pairwise([*starts, given["latents"].shape[2]]):
        chunk = frames_of(given, start, end)
        velocity, state = model(**chunk, state=state, frame_offset=start)
        velocities.append(velocity)
    return torch.cat(velocities, dim=2)


class Masked:
    """The whole clip at once in float64: every pair of tokens, and a mask over chunks."""

    def __init__(self, model: Transformer, given: dict[str, Tensor], starts: list[int]) -> None:
        self.parts = model.parts
        self.given = given
        frames = given["latents"].shape[2]
        self.grid = (frames, ROWS, COLUMNS)
        self.chunk = torch.bucketize(torch.arange(frames), torch.tensor(starts), right=True)
        self.position = torch.cartesian_prod(*[torch.arange(size) for size in self.grid]).double()

    def velocity(self) -> Tensor:
        run, given = self.parts, self.given
        tokens = run["patch_embed"](given["latents"]).double()
        modulation, embedding = run["timestep"](given["timestep"])
        text_k, text_v, bias = run["prompt"](given["hidden_states"], given["attention_mask"])
        for index in range(SPEC.num_layers):
            weights = {k: v.double() for k, v in run[graph_names.block(index)].state_dict().items()}
            text = text_k[index].double(), text_v[index].double(), bias.double()
            tokens = self.block(weights, tokens, modulation.double(), text)
        velocity: Tensor = run["final_layer"](tokens.float(), embedding)
        return velocity

    def block(
        self, w: dict[str, Tensor], tokens: Tensor, modulation: Tensor, text: tuple[Tensor, ...]
    ) -> Tensor:
        rows = (w["scale_shift_table"] + modulation)[:, :, :, None, None]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = rows.unbind(2)
        x = F.layer_norm(tokens, tokens.shape[-1:], eps=SPEC.norm_eps)
        x = self.self_attention(w, (x * (1 + scale_1) + shift_1).flatten(1, 3))
        tokens = tokens + gate_1 * x.view_as(tokens)
        tokens = tokens + cross_attention(w, tokens.flatten(1, 3), *text).view_as(tokens)
        x = F.layer_norm(tokens, tokens.shape[-1:], eps=SPEC.norm_eps)
        x = self.temporal(w, feed_forward(w, x * (1 + scale_2) + shift_2))
        return tokens + gate_2 * x

    def self_attention(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        q, k, v = (heads(x @ w[f"attn1.to_{name}.weight"].T) for name in "qkv")
        q, k = (
            F.relu(rms_norm(y, w[f"attn1.norm_{name}.weight"])) for name, y in (("q", q), ("k", k))
        )
        of_token = self.chunk.repeat_interleave(ROWS * COLUMNS)
        seen = (of_token[:, None] >= of_token[None, :]).double()  # [query, key]
        rotated = torch.einsum("bhnd,bhmd->bhnm", self.rotated(q), self.rotated(k)) * seen
        plain = torch.einsum("bhnd,bhmd->bhnm", q, k) * seen
        out = rotated @ v / (plain.sum(-1, keepdim=True) + SPEC.attention_eps)
        out = out.transpose(1, 2).flatten(2)
        return out @ w["attn1.to_out.0.weight"].T + w["attn1.to_out.0.bias"]

    def rotated(self, x: Tensor) -> Tensor:
        """Complex numbers turned by their token's absolute position."""
        angles = [
            self.position[:, axis, None] * 10000.0 ** (-torch.arange(0, n, 2).double() / n)
            for axis, n in enumerate(SPEC.rope_dims)
        ]
        turn = torch.polar(torch.ones(()).double(), torch.cat(angles, dim=-1))
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2)

    def temporal(self, w: dict[str, Tensor], z: Tensor) -> Tensor:
        """Zero right of each chunk's end, the chunk before left of its start."""
        out = []
        for index in self.chunk.unique():
            first = int((self.chunk == index).nonzero()[0])
            last = int((self.chunk == index).nonzero()[-1])
            left = z[:, first - 1 : first] if first else torch.zeros_like(z[:, :1])
            padded = torch.cat([left, z[:, first : last + 1], torch.zeros_like(z[:, :1])], dim=1)
            padded = padded.flatten(2, 3).permute(0, 3, 1, 2)  # [B, D, T + 2, H·W]
            conv = F.conv2d(padded, w["ff.conv_temp.weight"])
            out.append(conv.permute(0, 2, 3, 1).unflatten(2, (ROWS, COLUMNS)))
        return z + torch.cat(out, dim=1)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(1, 2)  # [B, h, N, d]


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Over the channels of all heads, x [B, h, N, d]."""
    scale = torch.rsqrt(x.square().mean((1, 3), keepdim=True) + SPEC.qk_norm_eps)
    return x * scale * weight.view(2, 1, -1)


def cross_attention(w: dict[str, Tensor], x: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The keys of :class:`Prompt` carry norm_q's weight and 1/√d."""
    q = heads(x @ w["attn2.to_q.weight"].T + w["attn2.to_q.bias"])
    q = rms_norm(q, torch.ones(2 * 28).double())
    out = ((q @ k.transpose(2, 3) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
    return out @ w["attn2.to_out.0.weight"].T + w["attn2.to_out.0.bias"]


def feed_forward(w: dict[str, Tensor], x: Tensor) -> Tensor:
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    hidden = F.silu(F.conv2d(images, w["ff.conv_inverted.weight"], w["ff.conv_inverted.bias"]))
    depth, bias = w["ff.conv_depth.weight"], w["ff.conv_depth.bias"]
    hidden = F.conv2d(hidden, depth, bias, padding=1, groups=len(depth))
    value, gate = hidden.chunk(2, dim=1)
    z = F.conv2d(value * F.silu(gate), w["ff.conv_point.weight"])
    return z.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def error(actual: Tensor, wanted: Tensor) -> float:
    return float((actual.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@torch.no_grad()
@pytest.mark.parametrize(
    ("frames", "starts"),
    [
        pytest.param(5, [0], id="one chunk"),
        pytest.param(6, [0, 3], id="no remainder"),
        pytest.param(8, [0, 5], id="first chunk longer"),
        pytest.param(10, [0, 4, 7], id="three chunks"),
        pytest.param(4, [0, 1, 2, 3], id="single frames"),
    ],
)
def test_chunks_equal_the_masked_clip(frames: int, starts: list[int]) -> None:
    model, given = transformer(), clip(frames)
    velocity = in_chunks(model, given, starts)
    assert error(velocity, Masked(model, given, starts).velocity()) < TOLERANCE


@torch.no_grad()
def test_the_mask_matters() -> None:
    """Chunks see those before them and not those after: neither alone nor all together."""
    model, given = transformer(), clip(6)
    velocity = in_chunks(model, given, [0, 3])
    together = in_chunks(model, given, [0])
    alone, _ = model(**frames_of(given, 3, 6), frame_offset=3)
    assert error(together[:, :, :3], velocity[:, :, :3]) > 100 * TOLERANCE
    assert error(alone, velocity[:, :, 3:]) > 100 * TOLERANCE


@torch.no_grad()
def test_position_is_absolute() -> None:
    """The same second chunk, placed at frame 0, is another chunk."""
    model, given = transformer(), clip(6)
    _, state = model(**frames_of(given, 0, 3))
    second = frames_of(given, 3, 6)
    placed, _ = model(**second, state=state, frame_offset=3)
    misplaced, _ = model(**second, state=state, frame_offset=0)
    assert error(misplaced, placed) > 100 * TOLERANCE


def block_inputs(frames: int, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(2)
    d = SPEC.head_dim
    rope = transformer().parts["rope"]
    tables = rope(torch.arange(7, 7 + frames), torch.arange(ROWS), torch.arange(COLUMNS))
    return {
        "tokens": torch.randn(2, frames, ROWS, COLUMNS, SPEC.width, dtype=dtype),
        "modulation": torch.randn(2, frames, 6, SPEC.width, dtype=dtype),
        "text_k": torch.randn(2, 2, 5, d, dtype=dtype) / d**0.5,
        "text_v": torch.randn(2, 2, 5, d, dtype=dtype),
        "text_bias": torch.zeros(2, 1, 1, 5, dtype=dtype),
        **{f"rope_{axis}": table for axis, table in zip("thw", tables, strict=True)},
        "state_s": torch.randn(2, 2, d, d),
        "state_k": torch.rand(2, 2, d),
        "state_z": torch.randn(2, ROWS, COLUMNS, SPEC.width, dtype=dtype),
    }


@torch.no_grad()
def test_state_is_what_the_architecture_says() -> None:
    """Σ v (R k)ᵀ with v along the rows, Σ relu(k) not rotated, the last frame of z."""
    block = transformer().parts["block_00"]
    assert isinstance(block, Block)
    given = block_inputs(3, torch.float32)
    _, state_s, state_k, state_z = block(**given)

    reference = Masked(transformer(), clip(3), [0])
    reference.position[:, 0] += 7
    w = {key: value.double() for key, value in block.state_dict().items()}
    shift, scale = (
        (w["scale_shift_table"] + given["modulation"])[:, :, row, None, None] for row in (0, 1)
    )
    tokens = given["tokens"].double()
    x = F.layer_norm(tokens, tokens.shape[-1:], eps=SPEC.norm_eps) * (1 + scale) + shift
    k, v = (heads(x.flatten(1, 3) @ w[f"attn1.to_{name}.weight"].T) for name in "kv")
    k = F.relu(rms_norm(k, w["attn1.norm_k.weight"]))
    outer = torch.einsum("bhnv,bhnk->bhvk", v, reference.rotated(k))
    assert error(state_s - given["state_s"], outer) < TOLERANCE
    assert error(state_k - given["state_k"], k.sum(2)) < TOLERANCE

    inputs: list[Tensor] = []
    block.ff.conv_temp.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    block(**given)
    assert torch.equal(state_z, inputs[0][:, -1])


@torch.no_grad()
def test_state_is_not_written() -> None:
    """A chunk is denoised several times from the same state."""
    block = transformer().parts["block_00"]
    assert isinstance(block, Block)
    given = block_inputs(2, torch.float32)
    before = {key: value.clone() for key, value in given.items()}
    once, twice = block(**given), block(**given)
    assert all(torch.equal(given[key], before[key]) for key in given)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("depthwise", ["conv", "shifted"])
def test_bfloat16(depthwise: Depthwise) -> None:
    """Weights and tokens in bfloat16; sums, their state and the rotary tables in float32."""
    block = transformer(depthwise).parts["block_00"].to(torch.bfloat16)
    assert isinstance(block, Block)
    given = block_inputs(3, torch.bfloat16)
    tokens, state_s, state_k, state_z = block(**given)
    dtypes = [tensor.dtype for tensor in (tokens, state_s, state_k, state_z)]
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]

    wanted = block.float()(**{key: value.float() for key, value in given.items()})
    for actual, exact in zip((tokens, state_s, state_k, state_z), wanted, strict=True):
        assert error(actual, exact) < BFLOAT16_TOLERANCE


@torch.no_grad()
def test_bfloat16_model_keeps_its_positions_and_timesteps() -> None:
    model, given = transformer(), clip(3)
    index = [torch.arange(size) for size in (3, ROWS, COLUMNS)]
    tables = model.parts["rope"](*index)
    wanted, _ = model(**given)
    model.to(torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(model.parts["rope"](*index), tables, strict=True))
    velocity, _ = model(**given)
    assert velocity.dtype == torch.float32
    assert error(velocity, wanted) < 2 * BFLOAT16_TOLERANCE  # embeddings, then two blocks
