"""The transformer against diffusers' SanaVideoTransformer3DModel: random weights, float32."""

from __future__ import annotations

from functools import cache

import msgspec
import pytest
import torch
from diffusers import SanaVideoTransformer3DModel
from torch import Tensor

from sana_rt import graph_names
from sana_rt.export.modules.block import Block, BlockState, Depthwise
from sana_rt.export.modules.transformer import Transformer, parts
from sana_rt.model_spec import PRESETS, TransformerSpec

#: Largest difference over largest value. Two float32 evaluations of the same formulas in
#: another order differ by about 2^-24 times the square root of the roundings in a row (a few
#: hundred): 1e-6. The factor 20 leaves room for blocks that amplify.
TOLERANCE = 2e-5
#: Gradients pass each operator twice, and sums over all tokens end in one number.
GRADIENT_TOLERANCE = 1e-4

SPEC = TransformerSpec(
    in_channels=16,
    out_channels=16,
    patch_size=(1, 2, 2),
    num_layers=2,
    num_heads=3,
    head_dim=28,  # rotated 12, 8, 8: uneven, as 40, 36, 36 of the released models
    num_cross_heads=2,
    cross_head_dim=42,
    caption_channels=40,
    ffn_dim=252,
    rope_max_positions=32,
)
SPECS = {
    "wan": SPEC,
    "ltx2": msgspec.structs.replace(
        SPEC, in_channels=128, out_channels=128, patch_size=(1, 1, 1), num_heads=2, ffn_dim=140
    ),
    "dcae": msgspec.structs.replace(
        SPEC, in_channels=32, out_channels=32, patch_size=(1, 1, 1), head_dim=40, ffn_dim=360
    ),
    # not in a released model
    "oblong": msgspec.structs.replace(SPEC, patch_size=(1, 1, 2)),
    "epsilon": msgspec.structs.replace(SPEC, norm_eps=0.05),  # not of the final layer
}
TEXT_TOKENS = 7


def diffusers_model(spec: TransformerSpec, device: str = "cpu") -> SanaVideoTransformer3DModel:
    with torch.device(device):
        return SanaVideoTransformer3DModel(
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            num_attention_heads=spec.num_heads,
            attention_head_dim=spec.head_dim,
            num_layers=spec.num_layers,
            num_cross_attention_heads=spec.num_cross_heads,
            cross_attention_head_dim=spec.cross_head_dim,
            cross_attention_dim=spec.width,
            caption_channels=spec.caption_channels,
            mlp_ratio=spec.ffn_dim / spec.width,
            patch_size=spec.patch_size,
            norm_eps=spec.norm_eps,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=spec.rope_max_positions,
        ).eval()


@cache
def reference(name: str) -> SanaVideoTransformer3DModel:
    """A reference whose every parameter matters; norm weights of both signs among them."""
    torch.manual_seed(0)
    model = diffusers_model(SPECS[name])
    for key, parameter in model.named_parameters():
        if "norm" in key:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.7)
        elif parameter.ndim == 1 or "table" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def ours(name: str, depthwise: Depthwise = "conv") -> Transformer:
    model = Transformer(SPECS[name], depthwise).eval()
    model.load_state_dict(reference(name).state_dict(), strict=True)
    return model


def inputs(spec: TransformerSpec, frames: int, rows: int, columns: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    _, height, width = spec.patch_size
    mask = torch.ones(2, TEXT_TOKENS, dtype=torch.int64)
    mask[1, 3:] = 0
    return {
        "latents": torch.randn(2, spec.in_channels, frames, rows * height, columns * width),
        "hidden_states": torch.randn(2, TEXT_TOKENS, spec.caption_channels),
        "attention_mask": mask,
    }


def expected(name: str, given: dict[str, Tensor], timestep: Tensor) -> Tensor:
    velocity: Tensor = reference(name)(
        given["latents"],
        given["hidden_states"],
        timestep,
        encoder_attention_mask=given["attention_mask"],
        return_dict=False,
    )[0]
    return velocity


def error(actual: Tensor, wanted: Tensor) -> float:
    assert actual.shape == wanted.shape
    assert actual.dtype == wanted.dtype
    return float((actual - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("depthwise", ["conv", "shifted"])
@pytest.mark.parametrize("grid", [(3, 4, 7), (1, 3, 3), (4, 1, 5), (2, 6, 1)])
@pytest.mark.parametrize("name", SPECS)
def test_velocity(name: str, grid: tuple[int, int, int], depthwise: Depthwise) -> None:
    given = inputs(SPECS[name], *grid)
    timestep = torch.tensor([999.0, 340.0])
    velocity, _ = ours(name, depthwise)(timestep=timestep[:, None].expand(2, grid[0]), **given)
    assert error(velocity, expected(name, given, timestep)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", SPECS)
def test_velocity_of_image_to_video(name: str) -> None:
    frames, rows, columns = 3, 4, 5
    given = inputs(SPECS[name], frames, rows, columns)
    timestep = torch.tensor([[0.0, 873.5, 873.5], [0.0, 12.0, 12.0]])
    per_token = timestep[:, None, :, None, None].expand(2, 1, frames, rows, columns)
    velocity, _ = ours(name)(timestep=timestep, **given)
    assert error(velocity, expected(name, given, per_token)) < TOLERANCE
    same_everywhere = expected(name, given, timestep[:, 1])
    assert error(velocity, same_everywhere) > 100 * TOLERANCE  # the first frame's t matters


@torch.no_grad()
def test_parts_one_by_one() -> None:
    """Every intermediate tensor that the reference has, from the tensors before it."""
    model, run = reference("wan"), ours("wan").parts
    frames, rows, columns = grid = (3, 2, 5)
    given = inputs(SPEC, *grid)
    timestep = torch.tensor([[7.0, 500.0, 999.0], [0.0, 1.0, 640.25]])
    seen: dict[str, tuple[tuple[Tensor, ...], dict[str, Tensor], Tensor]] = {}

    def see(key: str) -> None:
        def hook(
            _: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], out: Tensor
        ) -> None:
            seen[key] = (args, kwargs, out)

        handles.append(model.get_submodule(key).register_forward_hook(hook, with_kwargs=True))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    blocks = [f"transformer_blocks.{index}" for index in range(SPEC.num_layers)]
    for key in ("patch_embedding", "time_embed", "norm_out", *blocks):
        see(key)
    velocity = expected(
        "wan", given, timestep[:, None, :, None, None].expand(2, 1, frames, rows, columns)
    )
    for handle in handles:
        handle.remove()

    tokens = run["patch_embed"](given["latents"])
    patches = seen["patch_embedding"][2].permute(0, 2, 3, 4, 1)
    assert error(tokens, patches.contiguous()) < TOLERANCE

    modulation, embedding = run["timestep"](timestep)
    for actual, wanted in zip((modulation, embedding), seen["time_embed"][2], strict=True):
        by_frame = wanted.reshape(2, frames, rows, columns, -1)[:, :, 0, 0]
        assert error(actual.flatten(2), by_frame) < TOLERANCE

    text_k, text_v, text_bias = run["prompt"](given["hidden_states"], given["attention_mask"])
    rope = run["rope"](*(torch.arange(size) for size in grid))
    for index, key in enumerate(blocks):
        args, _, wanted = seen[key]
        state = BlockState.zeros(SPEC, tokens)
        before = args[0].reshape(2, *grid, SPEC.width)
        text = (text_k[index], text_v[index], text_bias)
        after = run[graph_names.block(index)](before, modulation, *text, *rope, *state)[0]
        assert error(after - before, (wanted - args[0]).view_as(before)) < TOLERANCE

    last = seen[blocks[-1]][2].reshape(2, *grid, SPEC.width)
    assert error(run["final_layer"](last, embedding), velocity) < TOLERANCE


@torch.no_grad()
def test_token_without_query() -> None:
    """Where ReLU leaves nothing of q, linear attention is 0 / eps: zero, not NaN."""
    torch.manual_seed(0)
    model = diffusers_model(SPEC)
    attention = model.transformer_blocks[0].attn1
    direction = torch.randn(SPEC.width)
    attention.to_q.weight.copy_(torch.rand(SPEC.width, 1) * direction)  # one sign a token
    transformer = Transformer(SPEC).eval()
    transformer.load_state_dict(model.state_dict())
    empty = []
    attention.norm_q.register_forward_hook(
        lambda _, __, q: empty.append((q.relu() == 0).all(-1).float().mean())
    )
    given = inputs(SPEC, 3, 4, 7)
    wanted = model(
        given["latents"],
        given["hidden_states"],
        torch.tensor([500.0, 500.0]),
        encoder_attention_mask=given["attention_mask"],
        return_dict=False,
    )[0]
    velocity, _ = transformer(timestep=torch.full((2, 3), 500.0), **given)
    assert 0.2 < float(empty[0]) < 0.8
    assert bool(velocity.isfinite().all())
    assert error(velocity, wanted) < TOLERANCE


def test_gradients() -> None:
    """Training sees the reference's gradients, also where a factor was cancelled."""
    model, transformer = reference("wan"), ours("wan")
    model.zero_grad()
    given = inputs(SPEC, 3, 4, 5)
    timestep = torch.tensor([999.0, 340.0])
    target = torch.randn_like(given["latents"])
    (expected("wan", given, timestep) - target).square().mean().backward()
    velocity, _ = transformer(timestep=timestep[:, None].expand(2, 3), **given)
    (velocity - target).square().mean().backward()
    wanted = {key: parameter.grad for key, parameter in model.named_parameters()}
    # the state dict, because it has the reference's names
    actual = {key: value.grad for key, value in transformer.state_dict(keep_vars=True).items()}
    assert actual.keys() == wanted.keys()
    for key, gradient in wanted.items():
        assert error(actual[key], gradient) < GRADIENT_TOLERANCE, key


def test_rope_tables_are_the_reference_s() -> None:
    spec = PRESETS["sana-video-2b-480p"].transformer
    torch.manual_seed(0)
    from diffusers.models.transformers.transformer_sana_video import WanRotaryPosEmbed

    rope = WanRotaryPosEmbed(spec.head_dim, spec.patch_size, spec.rope_max_positions)
    tables = parts(spec)["rope"].build()(*[torch.arange(spec.rope_max_positions)] * 3)
    cos, sin = (torch.cat([table[..., i] for table in tables], dim=1) for i in (0, 1))
    # The reference repeats each value for both channels of a pair.
    assert torch.equal(cos.repeat_interleave(2, dim=1), rope.freqs_cos)
    assert torch.equal(sin.repeat_interleave(2, dim=1), rope.freqs_sin)


def test_state_dict_is_the_checkpoint_s() -> None:
    wanted = reference("wan").state_dict()
    actual = ours("wan").state_dict()
    assert actual.keys() == wanted.keys()
    assert all(torch.equal(actual[key], wanted[key]) for key in wanted)


def test_a_missing_or_unknown_tensor_is_refused() -> None:
    tensors = dict(reference("wan").state_dict())
    tensors["transformer_blocks.0.attn1.to_q.bias"] = tensors.pop("proj_out.bias")
    with pytest.raises(RuntimeError, match=r"proj_out\.bias(.|\n)*to_q\.bias"):
        Transformer(SPEC).load_state_dict(tensors, strict=True)


@pytest.mark.parametrize("preset", PRESETS)
def test_parts_cover_the_released_checkpoints(preset: str) -> None:
    """Each tensor of a 2B checkpoint belongs to exactly one part, by name and shape."""
    spec = PRESETS[preset].transformer
    wanted = {key: value.shape for key, value in diffusers_model(spec, "meta").state_dict().items()}
    found: list[tuple[str, torch.Size]] = []
    for part in parts(spec).values():
        with torch.device("meta"):
            module = part.build()
        found += [(part.prefix + key, value.shape) for key, value in module.state_dict().items()]
    assert len(found) == len(wanted)
    assert dict(found) == wanted


def test_a_part_built_on_the_meta_device_is_filled_by_its_tensors() -> None:
    tensors = reference("wan").state_dict()
    part = parts(SPEC)["block_01"]
    with torch.device("meta"):
        block, rope = part.build(), parts(SPEC)["rope"].build()
    assert isinstance(block, Block)
    names = {key: part.prefix + key for key in block.state_dict()}
    block.load_state_dict({key: tensors[name] for key, name in names.items()}, assign=True)
    assert all(value.device.type == "cpu" for value in block.state_dict().values())
    assert all(table.device.type == "cpu" for table in rope(*[torch.arange(3)] * 3))
